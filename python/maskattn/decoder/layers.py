"""The layers of a Transformer (arXiv:1706.03762): frozen weights that are called with (batch, len, width), float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskattn import masks
from maskattn._core import MaskPlan
from maskattn.arguments import Lengths, MaskLike
from maskattn.bias import BiasLike
from maskattn.cache import Layer
from maskattn.decoder.activations import Activation, CoreActivation, relu
from maskattn.decoder.activations import activation as activation_named
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.multi_head import KeyValues, MultiHeadAttention, check_input
from maskattn.decoder.norms import PLACEMENTS, Branch, LayerNorm, Norm, Placement
from maskattn.decoder.projection import Linear, stacked
from maskattn.decoder.rotary import Rotation
from maskattn.decoder.torch_state import TorchState

LOOK_AHEAD = masks.Causal()


@dataclass(frozen=True, eq=False)
class FeedForward:
    """``down(activation(up(x)))``, position by position (arXiv:1706.03762, section 3.3)."""

    up: Linear
    down: Linear
    activation: Activation = relu

    def __post_init__(self) -> None:
        if self.down.in_features != self.up.out_features:
            raise ValueError(
                f"down must have as many inputs as up has outputs, {self.up.out_features}, got {self.down.in_features}"
            )

    def __call__(self, x: FloatArray) -> FloatArray:
        """(..., width) -> (..., width)."""
        return self.down(self.activation(self.up(x)))


@dataclass(frozen=True, eq=False)
class GatedFeedForward:
    """``down(activation(gate(x)) * up(x))``, position by position (arXiv:2002.05202)."""

    gate: Linear
    up: Linear
    down: Linear
    activation: Activation
    _gate_up: Linear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.gate.out_features == self.up.out_features == self.down.in_features:
            raise ValueError(
                f"gate and up must have as many outputs as down has inputs, {self.down.in_features}, "
                f"got {self.gate.out_features} and {self.up.out_features}"
            )
        both, inner = stacked([self.gate, self.up]), self.gate.out_features  # one product, as in MultiHeadAttention
        object.__setattr__(self, "gate", both.rows(0, inner))
        object.__setattr__(self, "up", both.rows(inner, 2 * inner))
        object.__setattr__(self, "_gate_up", both)

    def __call__(self, x: FloatArray) -> FloatArray:
        """(..., width) -> (..., width)."""
        both = self._gate_up(x)
        if isinstance(self.activation, CoreActivation):
            return self.down(self.activation.gated(both))
        gate, up = np.split(both, 2, axis=-1)
        return self.down(self.activation(gate) * up)


@dataclass(frozen=True, eq=False)
class EncoderLayer:
    """Self-attention and feed-forward, each with a residual branch and a norm.

    With ``mask=Causal()`` and a ``cache`` it is the layer of a decoder that has no encoder. The two inner norms are for
    a placement that has them: of what attention adds, and of what the feed-forward part does.
    """

    attention: MultiHeadAttention
    attention_norm: Norm
    feed_forward: Callable[[FloatArray], FloatArray]
    feed_forward_norm: Norm
    placement: Placement = PLACEMENTS["post"]
    attention_inner_norm: Norm | None = None
    feed_forward_inner_norm: Norm | None = None

    def __call__(
        self,
        x: FloatArray,
        *,
        mask: MaskLike = None,
        bias: BiasLike = None,
        kv_lengths: Lengths = None,
        cache: Layer | None = None,
        new_lengths: IntArray | None = None,
        rotation: Rotation | None = None,
    ) -> FloatArray:
        """
        Args:
            x: shape (batch, len, width), float32.
            mask, bias, kv_lengths, cache, new_lengths, rotation: as in :meth:`MultiHeadAttention.__call__`.

        Returns:
            New array, shape of ``x``. A position that sees no key gets zeros from attention, never NaN.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        check_input("x", x, self.attention.width)

        def attend(h: FloatArray) -> FloatArray:
            return self.attention(
                h,
                mask=mask,
                bias=bias,
                kv_lengths=kv_lengths,
                cache=cache,
                new_lengths=new_lengths,
                rotation=rotation,
            )

        return self.placement.layer(
            x,
            (self.attention_norm, inner(attend, self.attention_inner_norm)),
            (self.feed_forward_norm, inner(self.feed_forward, self.feed_forward_inner_norm)),
        )

    @classmethod
    def from_torch(
        cls,
        state: Mapping[str, Any],
        heads: int,
        *,
        norm_first: bool = False,
        activation: str | Activation = "relu",
        eps: float = 1e-5,
        prefix: str = "",
    ) -> EncoderLayer:
        """The layer that ``torch.nn.TransformerEncoderLayer`` is in ``eval()``, from its ``state_dict()``.

        Args and errors as in :meth:`DecoderLayer.from_torch`.
        """
        with TorchState(state, prefix) as tensors:
            return cls(
                MultiHeadAttention.take(tensors, "self_attn.", heads),
                _norm(tensors, "norm1", eps),
                _feed_forward(tensors, activation),
                _norm(tensors, "norm2", eps),
                PLACEMENTS["pre" if norm_first else "post"],
            )


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """Self-attention, cross-attention and feed-forward, each with a residual branch and a norm.

    Without ``cross``, ``cross_norm`` and ``memory`` it is the layer of a decoder that has no encoder.
    """

    attention: MultiHeadAttention
    attention_norm: Norm
    cross: MultiHeadAttention | None
    cross_norm: Norm | None
    feed_forward: Callable[[FloatArray], FloatArray]
    feed_forward_norm: Norm
    placement: Placement = PLACEMENTS["post"]
    attention_inner_norm: Norm | None = None
    feed_forward_inner_norm: Norm | None = None

    def __call__(
        self,
        x: FloatArray,
        memory: FloatArray | KeyValues | None = None,
        *,
        mask: MaskLike = LOOK_AHEAD,
        memory_mask: MaskLike = None,
        bias: BiasLike = None,
        kv_lengths: Lengths = None,
        memory_lengths: Lengths = None,
        cache: Layer | None = None,
        new_lengths: IntArray | None = None,
        rotation: Rotation | None = None,
        cross_weights: list[FloatArray] | None = None,
        cross_heads: Sequence[int] | None = None,
    ) -> FloatArray:
        """
        Args:
            x: shape (batch, len, width), float32: the positions after those in ``cache``, or all of them.
            memory: the encoder's output, shape (batch, memory_len, memory_width), float32; or what
                ``layer.cross.project`` made of it, which saves the work at every step of a generation.
            mask: who sees whom in self-attention; the look-ahead mask by default.
            memory_mask: who sees what of ``memory``. Position ``t`` of the target is position ``t`` to it.
            bias, kv_lengths: of self-attention, as in :meth:`MultiHeadAttention.__call__`.
            memory_lengths: shape (batch,) or one integer; ``memory`` at or past it is padding and is not read.
            cache, new_lengths, rotation: of self-attention, as in :meth:`MultiHeadAttention.__call__`.
            cross_weights: gets the cross-attention weights, (batch, heads, len, memory_len).
            cross_heads: whose weights it gets; default all.

        Returns:
            New array, shape of ``x``. A position that sees no key gets zeros from attention, never NaN.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        check_input("x", x, self.attention.width)
        start = 0 if cache is None else cache.lengths  # before it gets the new ones
        own: dict[str, Any] = {
            "mask": mask, "bias": bias, "kv_lengths": kv_lengths,
            "cache": cache, "new_lengths": new_lengths, "rotation": rotation,
        }  # fmt: skip
        branches = [
            (self.attention_norm, inner(lambda h: self.attention(h, **own), self.attention_inner_norm)),
            (self.feed_forward_norm, inner(self.feed_forward, self.feed_forward_inner_norm)),
        ]
        if self.cross is not None and self.cross_norm is not None:
            q_offset = None if memory_mask is None or isinstance(memory_mask, MaskPlan) else start
            options: dict[str, Any] = {"mask": memory_mask, "kv_lengths": memory_lengths, "q_offset": q_offset}
            attend = _attend_memory(self.cross, memory, options, cross_weights, cross_heads)
            branches.insert(1, (self.cross_norm, attend))
        return self.placement.layer(x, *branches)

    @classmethod
    def from_torch(
        cls,
        state: Mapping[str, Any],
        heads: int,
        *,
        norm_first: bool = False,
        activation: str | Activation = "relu",
        eps: float = 1e-5,
        prefix: str = "",
    ) -> DecoderLayer:
        """The layer that ``torch.nn.TransformerDecoderLayer`` is in ``eval()``, from its ``state_dict()``.

        Args:
            state: name -> tensor, or array of any float dtype; copied to float32. Biases may be missing, all or some.
            heads, norm_first, activation, eps: torch's ``nhead``, ``norm_first``, ``activation`` and
                ``layer_norm_eps``, which a ``state_dict`` does not hold.
            prefix: what stands before the layer's names in ``state``, such as ``"decoder.layers.0."``.

        Raises:
            TypeError: a tensor is not floating.
            ValueError: a tensor is missing or not known, shapes do not belong together, or the activation is not known.
        """
        with TorchState(state, prefix) as tensors:
            return cls(
                MultiHeadAttention.take(tensors, "self_attn.", heads),
                _norm(tensors, "norm1", eps),
                MultiHeadAttention.take(tensors, "multihead_attn.", heads),
                _norm(tensors, "norm2", eps),
                _feed_forward(tensors, activation),
                _norm(tensors, "norm3", eps),
                PLACEMENTS["pre" if norm_first else "post"],
            )


def inner(branch: Branch, norm: Norm | None) -> Branch:
    """``branch`` with a norm of what it adds, if there is one."""
    return branch if norm is None else lambda h: norm(branch(h))


def _attend_memory(
    cross: MultiHeadAttention,
    memory: FloatArray | KeyValues | None,
    options: dict[str, Any],
    weights: list[FloatArray] | None,
    heads: Sequence[int] | None,
) -> Branch:
    keys = (
        memory if isinstance(memory, KeyValues) else cross.project(check_input("memory", memory, cross.k.in_features))
    )

    def attend(h: FloatArray) -> FloatArray:
        if weights is not None:
            weights.append(cross.weights(h, keys, heads=heads, **options))
        return cross(h, keys, **options)

    return attend


def _norm(tensors: TorchState, name: str, eps: float) -> LayerNorm:
    return LayerNorm(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), eps)


def _feed_forward(tensors: TorchState, activation: str | Activation) -> FeedForward:
    function = activation if callable(activation) else activation_named("activation", activation)
    return FeedForward(tensors.linear("linear1"), tensors.linear("linear2"), function)
