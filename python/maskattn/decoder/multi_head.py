"""Multi-head attention with its projections, for self- and cross-attention alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from maskattn import attention, attention_weights
from maskattn.arguments import Lengths, MaskLike
from maskattn.bias import BiasLike
from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.projection import Linear, stacked
from maskattn.decoder.torch_state import TorchState


class KeyValues(NamedTuple):
    """Projected keys and values, each (batch, heads, len, head_dim), float32."""

    keys: FloatArray
    values: FloatArray


class LayerCache(Protocol):
    """What one layer's self-attention remembers of the positions so far."""

    @property
    def length(self) -> int:
        """How many positions are stored."""

    def append(self, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Store (batch, heads, new, head_dim) each; returns all keys and all values, the new ones last."""


@dataclass(frozen=True, eq=False)
class MultiHeadAttention:
    """``out(concatenated heads of attention(q(query), k(key), v(value)))`` (arXiv:1706.03762, section 3.2.2).

    Args:
        q, k, v: from the widths of query, key and value to ``heads * head_dim``.
        out: back from there to the layer's width.
        heads: head ``h`` has the outputs ``h * head_dim`` to ``(h + 1) * head_dim`` of each projection.

    Raises:
        TypeError, ValueError: ``heads`` is not an int, or shapes do not belong together.
    """

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    heads: int
    _qkv: Linear | None = field(init=False, repr=False)
    _kv: Linear | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        inner = self.q.out_features
        qkv = kv = None
        # Projections of one input are one product; q, k and v are then rows of its weight, not copies.
        if self.k.in_features == self.v.in_features:
            if self.q.in_features == self.k.in_features:
                qkv = stacked([self.q, self.k, self.v])
                object.__setattr__(self, "q", qkv.rows(0, inner))
                kv = qkv.rows(inner, 3 * inner)
            else:
                kv = stacked([self.k, self.v])
            object.__setattr__(self, "k", kv.rows(0, inner))
            object.__setattr__(self, "v", kv.rows(inner, 2 * inner))
        object.__setattr__(self, "_qkv", qkv)
        object.__setattr__(self, "_kv", kv)

    @property
    def width(self) -> int:
        """Of queries."""
        return self.q.in_features

    def __call__(
        self,
        query: FloatArray,
        key: FloatArray | KeyValues | None = None,
        value: FloatArray | None = None,
        *,
        mask: MaskLike = None,
        bias: BiasLike = None,
        kv_lengths: Lengths = None,
        q_offset: Lengths = None,
        cache: LayerCache | None = None,
    ) -> FloatArray:
        """
        Args:
            query: shape (batch, q_len, width), float32.
            key: shape (batch, kv_len, key_width), float32; or what :meth:`project` made of it. None: self-attention.
            value: shape (batch, kv_len, value_width), float32. None: the same array as ``key``.
            mask, bias, kv_lengths, q_offset: as in :func:`maskattn.attention`, with one difference. In self-attention
                queries and keys are the same positions, so ``kv_lengths`` (padding on the right) does not move the
                queries: they stand at the last keys that are stored, with ``cache`` and without.
            cache: of self-attention; gets the keys and values of ``query``, which sees all that it holds.

        Returns:
            New array (batch, q_len, out's width), float32. A query that sees no key gets ``out`` of zeros.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        if cache is not None and key is not None:
            raise ValueError("cache must be None with key, got both; keep the result of project(key) instead")
        q, keys, values = self._heads_of(query, key, value)
        if cache is not None:
            keys, values = cache.append(keys, values)
        if key is None:
            q_offset = _stored_before(q, keys, kv_lengths, q_offset)
        attended = attention(q, keys, values, mask=mask, bias=bias, kv_lengths=kv_lengths, q_offset=q_offset)
        return self.out(join_heads(attended))

    def weights(
        self,
        query: FloatArray,
        key: FloatArray | KeyValues | None = None,
        *,
        mask: MaskLike = None,
        bias: BiasLike = None,
        kv_lengths: Lengths = None,
        q_offset: Lengths = None,
    ) -> FloatArray:
        """Which keys each query attends to: shape (batch, heads, q_len, kv_len); arguments as in a call.

        Rows sum to 1, or to 0 where a query sees no key. ``.mean(axis=1)`` is the average over heads.
        """
        check_input("query", query, self.q.in_features)
        (q,) = split_heads(self.q(query), 1, self.heads)
        if isinstance(key, KeyValues):
            keys = key.keys
        else:
            source = query if key is None else key
            check_input("key", source, self.k.in_features)
            (keys,) = split_heads(self.k(source), 1, self.heads)
        if key is None:
            q_offset = _stored_before(q, keys, kv_lengths, q_offset)
        return attention_weights(q, keys, mask=mask, bias=bias, kv_lengths=kv_lengths, q_offset=q_offset)

    def project(self, key: FloatArray, value: FloatArray | None = None) -> KeyValues:
        """Keys and values from (batch, kv_len, key_width) and (batch, kv_len, value_width), for any number of calls."""
        check_input("key", key, self.k.in_features)
        if value is None and self._kv is not None:
            return KeyValues(*split_heads(self._kv(key), 2, self.heads))
        value = key if value is None else value
        check_input("value", value, self.v.in_features)
        (keys,), (values,) = split_heads(self.k(key), 1, self.heads), split_heads(self.v(value), 1, self.heads)
        return KeyValues(keys, values)

    @classmethod
    def from_torch(cls, state: Mapping[str, Any], heads: int, *, prefix: str = "") -> MultiHeadAttention:
        """The module that ``torch.nn.MultiheadAttention`` is in ``eval()``, from its ``state_dict()``.

        Args:
            state: name -> tensor, or array of any float dtype; copied to float32. Biases may be missing.
            heads: torch's ``num_heads``, which a ``state_dict`` does not hold.
            prefix: what stands before the module's names in ``state``.

        Raises:
            TypeError: a tensor is not floating.
            ValueError: a tensor is missing or not known, or shapes do not belong together. ``add_bias_kv`` is not
                supported, nor is ``add_zero_attn``, of which a ``state_dict`` says nothing.
        """
        with TorchState(state, prefix) as tensors:
            return cls.take(tensors, "", heads)

    @classmethod
    def take(cls, tensors: TorchState, name: str, heads: int) -> MultiHeadAttention:
        """As :meth:`from_torch`, of a module inside a layer."""
        weights = tensors.thirds(f"{name}in_proj_weight")
        if weights is None:
            weights = [tensors[f"{name}{part}_proj_weight"] for part in "qkv"]
        biases: Sequence[FloatArray | None] = tensors.thirds(f"{name}in_proj_bias") or [None] * 3
        q, k, v = (Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return cls(q, k, v, tensors.linear(f"{name}out_proj"), heads)

    def _heads_of(
        self, query: FloatArray, key: FloatArray | KeyValues | None, value: FloatArray | None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        check_input("query", query, self.q.in_features)
        if key is None and value is None and self._qkv is not None:
            q, keys, values = split_heads(self._qkv(query), 3, self.heads)
            return q, keys, values
        (q,) = split_heads(self.q(query), 1, self.heads)
        if not isinstance(key, KeyValues):
            key = self.project(query if key is None else key, value)
        return q, *key

    def _check(self) -> None:
        inner = self.q.out_features
        if not isinstance(self.heads, int):
            raise TypeError(f"heads must be an int, got {type(self.heads).__name__}")
        if self.heads < 1 or inner % self.heads:
            raise ValueError(f"heads must divide the {inner} outputs of q, got {self.heads}")
        for name, part in (("k", self.k), ("v", self.v)):
            if part.out_features != inner:
                raise ValueError(f"{name} must have as many outputs as q, {inner}, got {part.out_features}")
        if self.out.in_features != inner:
            raise ValueError(f"out must have as many inputs as q has outputs, {inner}, got {self.out.in_features}")


def check_input(name: str, x: FloatArray, width: int) -> None:
    """Refuse what is not a float32 array (batch, len, width)."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        got = f"dtype {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(
            f"{name} must be a NumPy array of float32, got {got}; convert it with np.asarray(x, np.float32)"
        )
    if x.ndim != 3 or x.shape[2] != width:
        raise ValueError(f"{name} must have shape (batch, len, {width}), got {x.shape}")


def split_heads(x: FloatArray, parts: int, heads: int) -> Iterator[FloatArray]:
    """(batch, len, parts * width) -> ``parts`` views (batch, heads, len, head_dim), whose strides attention takes."""
    batch, length, width = x.shape
    return iter(x.reshape(batch, length, parts, heads, width // (parts * heads)).transpose(2, 0, 3, 1, 4))


def join_heads(x: FloatArray) -> FloatArray:
    """(batch, heads, len, head_dim) -> (batch, len, width)."""
    batch, heads, length, head_dim = x.shape
    joined: FloatArray = x.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_dim)
    return joined


def _stored_before(q: FloatArray, keys: FloatArray, kv_lengths: Lengths, q_offset: Lengths) -> Lengths:
    """Where self-attention's queries stand; None leaves it to attention, or to a plan, which says the same."""
    return keys.shape[2] - q.shape[2] if q_offset is None and kv_lengths is not None else q_offset
