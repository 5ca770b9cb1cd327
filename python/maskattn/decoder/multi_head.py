"""Multi-head attention with its projections, for self- and cross-attention alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - so that NumPy knows the name bfloat16
import numpy as np

from maskattn import attention, attention_weights
from maskattn.arguments import Lengths, MaskLike
from maskattn.bias import BiasLike
from maskattn.cache import Layer
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.norms import Norm
from maskattn.decoder.projection import Linear, stacked
from maskattn.decoder.rotary import Rotation
from maskattn.decoder.torch_state import TorchState


class KeyValues(NamedTuple):
    """Projected keys and values, each (batch, heads, len, head_dim), float32."""

    keys: FloatArray
    values: FloatArray


@dataclass(frozen=True, eq=False)
class MultiHeadAttention:
    """``out(concatenated heads of attention(q(query), k(key), v(value)))`` (arXiv:1706.03762, section 3.2.2).

    Args:
        q, k, v: from the widths of query, key and value to ``heads * head_dim``.
        out: back from there to the layer's width.
        heads: head ``h`` has the outputs ``h * head_dim`` to ``(h + 1) * head_dim`` of each projection.
        kv_heads: of keys and values, a divisor of ``heads`` (arXiv:2305.13245); default ``heads``.
        scale, softcap: of the scores, as in :func:`maskattn.attention`.
        q_norm, k_norm: over head_dim, of each head's queries and keys, before they turn.
        dtype: "float32", or "bfloat16": queries, keys, values and what attention makes of them are rounded to it.

    Raises:
        TypeError, ValueError: ``heads`` is not an int, or shapes do not belong together.
    """

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    heads: int
    kv_heads: int | None = field(default=None, repr=False)
    scale: float | None = field(default=None, repr=False)
    softcap: float = field(default=0.0, repr=False)
    q_norm: Norm | None = field(default=None, repr=False)
    k_norm: Norm | None = field(default=None, repr=False)
    dtype: str = field(default="float32", repr=False)
    _qkv: Linear | None = field(init=False, repr=False)
    _kv: Linear | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        inner, kv_inner = self.q.out_features, self.k.out_features
        qkv = kv = None
        # Projections of one input are one product; q, k and v are then rows of its weight, not copies.
        if self.k.in_features == self.v.in_features:
            if self.q.in_features == self.k.in_features:
                qkv = stacked([self.q, self.k, self.v])
                object.__setattr__(self, "q", qkv.rows(0, inner))
                kv = qkv.rows(inner, inner + 2 * kv_inner)
            else:
                kv = stacked([self.k, self.v])
            object.__setattr__(self, "k", kv.rows(0, kv_inner))
            object.__setattr__(self, "v", kv.rows(kv_inner, 2 * kv_inner))
        object.__setattr__(self, "_qkv", qkv)
        object.__setattr__(self, "_kv", kv)

    @property
    def width(self) -> int:
        """Of queries."""
        return self.q.in_features

    @property
    def head_dim(self) -> int:
        """Coordinates of a query or key in one head."""
        return self.q.out_features // self.heads

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
        cache: Layer | None = None,
        new_lengths: IntArray | None = None,
        rotation: Rotation | None = None,
    ) -> FloatArray:
        """
        Args:
            query: shape (batch, q_len, width), float32.
            key: shape (batch, kv_len, key_width), float32; or what :meth:`project` made of it. None: self-attention.
            value: shape (batch, kv_len, value_width), float32. None: the same array as ``key``.
            mask, bias, kv_lengths, q_offset: as in :func:`maskattn.attention`, with one difference. In self-attention
                queries and keys are the same positions, so ``kv_lengths`` (padding on the right) does not move the
                queries: they stand at the last keys that are stored, with ``cache`` and without.
            cache: of self-attention, a layer of a :class:`~maskattn.KVCache`; gets the keys and values of ``query``,
                which sees all that it holds. It knows its lengths, so ``kv_lengths`` must be None.
            new_lengths: with ``cache``, shape (batch,): how many positions of ``query`` are a sequence's own, the first
                ones. The others are padding and are not stored. Default all.
            rotation: turns queries and keys by their positions, in self-attention.

        Returns:
            New array (batch, q_len, out's width), float32. A query that sees no key gets ``out`` of zeros.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        if cache is not None and key is not None:
            raise ValueError("cache must be None with key, got both; keep the result of project(key) instead")
        q, keys, values = self._heads_of(query, key, value, rotation)
        q, keys, values = (array.astype(self.dtype, copy=False) for array in (q, keys, values))
        options: dict[str, Any] = {"mask": mask, "bias": bias, "scale": self.scale, "softcap": self.softcap}
        if cache is not None:
            if new_lengths is not None and q_offset is None:
                q_offset = cache.lengths
            cache.append(keys, values, new_lengths)
            attended = attention(q, cache, kv_lengths=kv_lengths, q_offset=q_offset, **options)
        else:
            if key is None:
                q_offset = _stored_before(q, keys, kv_lengths, q_offset)
            attended = attention(q, keys, values, kv_lengths=kv_lengths, q_offset=q_offset, **options)
        return self.out(join_heads(attended).astype(np.float32, copy=False))

    def weights(
        self,
        query: FloatArray,
        key: FloatArray | KeyValues | None = None,
        *,
        mask: MaskLike = None,
        bias: BiasLike = None,
        kv_lengths: Lengths = None,
        q_offset: Lengths = None,
        heads: Sequence[int] | None = None,
    ) -> FloatArray:
        """Which keys each query attends to: shape (batch, heads, q_len, kv_len); arguments as in a call.

        Rows sum to 1, or to 0 where a query sees no key. ``.mean(axis=1)`` is the average over heads.

        Args:
            heads: only these, in this order, from 0; without a mask and a bias the others are not computed.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        check_input("query", query, self.q.in_features)
        if heads is not None and (wrong := [head for head in heads if not 0 <= head < self.heads]):
            raise ValueError(f"heads must be from 0 to {self.heads - 1}, got {wrong[0]}")
        if heads is not None and (mask is not None or bias is not None):  # which may differ from head to head
            options: dict[str, Any] = {"mask": mask, "bias": bias, "kv_lengths": kv_lengths, "q_offset": q_offset}
            return self.weights(query, key, **options)[:, list(heads)]
        q = self._queries(query, heads)
        if isinstance(key, KeyValues):
            keys = key.keys
        else:
            source = query if key is None else key
            check_input("key", source, self.k.in_features)
            keys = _normed(self.k_norm, *split_heads(self.k(source), self._groups))
        if heads is not None:
            shared_by = self.heads // self._groups
            keys = np.ascontiguousarray(keys[:, [head // shared_by for head in heads]])
        if key is None:
            q_offset = _stored_before(q, keys, kv_lengths, q_offset)
        options = {"mask": mask, "bias": bias, "scale": self.scale, "softcap": self.softcap}
        q, keys = (array.astype(self.dtype, copy=False).astype(np.float32, copy=False) for array in (q, keys))
        return attention_weights(q, keys, kv_lengths=kv_lengths, q_offset=q_offset, **options)

    def project(self, key: FloatArray, value: FloatArray | None = None) -> KeyValues:
        """Keys and values from (batch, kv_len, key_width) and (batch, kv_len, value_width), for any number of calls."""
        check_input("key", key, self.k.in_features)
        if value is None and self._kv is not None:
            keys, values = split_heads(self._kv(key), self._groups, self._groups)
        else:
            value = key if value is None else value
            check_input("value", value, self.v.in_features)
            (keys,), (values,) = split_heads(self.k(key), self._groups), split_heads(self.v(value), self._groups)
        return KeyValues(_normed(self.k_norm, keys), values)

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

    @property
    def _groups(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    def _queries(self, query: FloatArray, heads: Sequence[int] | None) -> FloatArray:
        """Of all heads or of some, (batch, heads, q_len, head_dim)."""
        if heads is None:
            return _normed(self.q_norm, *split_heads(self.q(query), self.heads))
        parts = [self.q.rows(head * self.head_dim, (head + 1) * self.head_dim)(query) for head in heads]
        return _normed(self.q_norm, *split_heads(np.concatenate(parts, axis=-1), len(heads)))

    def _heads_of(
        self, query: FloatArray, key: FloatArray | KeyValues | None, value: FloatArray | None, rotation: Rotation | None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        check_input("query", query, self.q.in_features)
        if key is None and value is None and self._qkv is not None:
            q, keys, values = split_heads(self._qkv(query), self.heads, self._groups, self._groups)
            q, keys = _normed(self.q_norm, q), _normed(self.k_norm, keys)
        else:
            q = _normed(self.q_norm, *split_heads(self.q(query), self.heads))
            if not isinstance(key, KeyValues):
                key = self.project(query if key is None else key, value)
            keys, values = key
        return (q, keys, values) if rotation is None else (rotation(q), rotation(keys), values)

    def _check(self) -> None:
        inner = self.q.out_features
        if not isinstance(self.heads, int):
            raise TypeError(f"heads must be an int, got {type(self.heads).__name__}")
        if self.heads < 1 or inner % self.heads:
            raise ValueError(f"heads must divide the {inner} outputs of q, got {self.heads}")
        if self._groups < 1 or self.heads % self._groups:
            raise ValueError(f"kv_heads must divide heads, {self.heads}, got {self.kv_heads}")
        wanted = self.head_dim * self._groups
        as_q = "as many outputs as q" if self.kv_heads is None else f"{self.head_dim} outputs per key-value head"
        for name, part in (("k", self.k), ("v", self.v)):
            if part.out_features != wanted:
                raise ValueError(f"{name} must have {as_q}, {wanted}, got {part.out_features}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")
        if self.out.in_features != inner:
            raise ValueError(f"out must have as many inputs as q has outputs, {inner}, got {self.out.in_features}")


def _normed(norm: Norm | None, x: FloatArray) -> FloatArray:
    return x if norm is None else norm(x)


def check_input(name: str, x: object, width: int) -> FloatArray:
    """``x``, which must be a float32 array (batch, len, width)."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        got = f"dtype {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(
            f"{name} must be a NumPy array of float32, got {got}; convert it with np.asarray(x, np.float32)"
        )
    if x.ndim != 3 or x.shape[2] != width:
        raise ValueError(f"{name} must have shape (batch, len, {width}), got {x.shape}")
    return x


def split_heads(x: FloatArray, *heads: int) -> list[FloatArray]:
    """(batch, len, sum(heads) * head_dim) -> views (batch, heads, len, head_dim), whose strides attention takes."""
    batch, length, width = x.shape
    every = x.reshape(batch, length, sum(heads), width // sum(heads)).transpose(0, 2, 1, 3)
    ends = list(accumulate(heads))
    return [every[:, end - n : end] for n, end in zip(heads, ends, strict=True)]


def join_heads(x: FloatArray) -> FloatArray:
    """(batch, heads, len, head_dim) -> (batch, len, width)."""
    batch, heads, length, head_dim = x.shape
    joined: FloatArray = x.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_dim)
    return joined


def _stored_before(q: FloatArray, keys: FloatArray, kv_lengths: Lengths, q_offset: Lengths) -> Lengths:
    """Where self-attention's queries stand; None leaves it to attention, or to a plan, which says the same."""
    return keys.shape[2] - q.shape[2] if q_offset is None and kv_lengths is not None else q_offset
