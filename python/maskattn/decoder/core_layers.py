"""A stack of layers as one call of the core, where it knows all that the layers are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from maskattn import masks
from maskattn._core import LayerStack, PackedWeight
from maskattn.cache import KVCache
from maskattn.decoder.activations import CoreActivation, identity
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.layers import DecoderLayer, EncoderLayer, FeedForward, GatedFeedForward
from maskattn.decoder.memory import Memory
from maskattn.decoder.multi_head import MultiHeadAttention
from maskattn.decoder.norms import LayerNorm, RMSNorm
from maskattn.decoder.positions import Positions
from maskattn.decoder.projection import Linear
from maskattn.decoder.rotary import Rotation

_STORED = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))


class Unknown(Exception):
    """A layer is made of something that the core does not know."""


class CoreLayers:
    """Layers as the core takes them: the bits of layers called one by one, without their Python and without padding."""

    def __init__(self, core: LayerStack) -> None:
        self._core = core

    @classmethod
    def of(
        cls, layers: Sequence[EncoderLayer | DecoderLayer], seen: Sequence[masks.Mask], positions: Positions
    ) -> CoreLayers | None:
        """None where a layer needs its Python, as for a norm or an activation of the user's.

        Args:
            seen: the mask of each layer's self-attention.
        """
        table, slopes = (None, None) if positions.bias is None else positions.bias._lower()
        first = layers[0].placement
        try:
            described = [layer_parts(layer, mask) for layer, mask in zip(layers, seen, strict=True)]
        except Unknown:
            return None
        if slopes is not None or any(layer.placement != first for layer in layers):
            return None
        width, rounds = layers[0].attention.width, layers[0].attention.dtype == "bfloat16"
        return cls(LayerStack(described, width, first.before, first.after, first.parallel, table, rounds))

    @staticmethod
    def takes(cache: KVCache) -> bool:
        """Whether the core can store what is new in such a cache."""
        return cache[0].dtype in _STORED and cache[0].window is None

    def run(
        self,
        x: FloatArray,
        counts: IntArray,
        *,
        cache: KVCache | None = None,
        seen: Sequence[masks.Mask] | None = None,
        memory: Memory | None = None,
        rotation: Rotation | None = None,
        threads: int | None = None,
    ) -> None:
        """Move states through the layers, in place.

        Args:
            x: shape (rows, width), float32: new positions of all sequences, one sequence behind the other.
            counts: shape (batch,): how many of each, from 0 up.
            cache: holds the positions before them, and gets their keys and values. None: there are none before them.
            seen: masks in place of the layers'.
            memory: what cross-attention reads.
            rotation: of each row.

        Raises:
            ValueError: a sequence would be longer than the cache's capacity; nothing is stored then.
        """
        stored = None
        if cache is not None:
            stored = cache[0].lengths
            step = make_room(cache, counts)
        read = None if memory is None else (memory.key_values, memory.starts, memory.lengths)
        expressions = None if seen is None else [_expression(mask) for mask in seen]
        self._core.run(x, counts, cache, stored, expressions, read, rotation, threads)
        if cache is not None:
            took(cache, counts, step)


def make_room(cache: KVCache, counts: IntArray) -> bool:
    """Room for so many tokens more of each sequence, (batch,): whether it is one of each, where it is in place.

    Raises:
        ValueError: a sequence would be longer than the capacity; nothing has changed then.
    """
    if (counts == 1).all() and all(layer.make_room_in_place(1) for layer in cache):
        return True
    for layer in cache:
        layer.make_room(counts)
    return False


def took(cache: KVCache, counts: IntArray, in_place: bool) -> None:
    """They have been stored; ``in_place`` is what :func:`make_room` said."""
    ends = cache[0].lengths + counts
    for layer in cache:
        layer.took_in_place(ends, 1) if in_place else layer.took(ends)


def layer_parts(layer: EncoderLayer | DecoderLayer, mask: masks.Mask) -> tuple[Any, ...]:
    """A layer as the core takes it: tuples of weights, norms and numbers. Raises Unknown."""
    cross, cross_norm = (layer.cross, layer.cross_norm) if isinstance(layer, DecoderLayer) else (None, None)
    if cross is None or cross_norm is None:
        cross = cross_norm = None
    return (
        _attention(layer.attention, layer.attention._qkv),
        norm_parts(layer.attention_norm),
        _optional(layer.attention_inner_norm),
        None if cross is None else _attention(cross, cross.q),
        _optional(cross_norm),
        _feed_forward(layer.feed_forward),
        norm_parts(layer.feed_forward_norm),
        _optional(layer.feed_forward_inner_norm),
        _expression(mask),
        isinstance(mask, masks.Causal),
    )


def _expression(mask: masks.Mask) -> Any:
    return None if isinstance(mask, masks.Full) else mask.expr


def _attention(attention: MultiHeadAttention, inputs: Linear | None) -> tuple[Any, ...]:
    if inputs is None:
        raise Unknown
    head_dim, kv_heads = attention.head_dim, attention.kv_heads or attention.heads
    scale = 1 / math.sqrt(head_dim) if attention.scale is None else attention.scale
    norms = _optional(attention.q_norm), _optional(attention.k_norm)
    sizes = attention.heads, kv_heads, head_dim
    return map_parts(inputs), map_parts(attention.out), *norms, *sizes, float(scale), float(attention.softcap)


def _feed_forward(part: Any) -> tuple[Any, ...]:
    if isinstance(part, GatedFeedForward) and part.activation is not identity:
        return map_parts(part._gate_up), map_parts(part.down), _function(part.activation), True
    if isinstance(part, FeedForward):
        return map_parts(part.up), map_parts(part.down), _function(part.activation), False
    raise Unknown


def _function(activation: Any) -> int | None:
    if isinstance(activation, CoreActivation):
        return activation.number
    if activation is identity:
        return None
    raise Unknown


def map_parts(linear: Linear) -> tuple[PackedWeight, FloatArray | None]:
    """Weight and bias. Raises Unknown where the weight is not packed."""
    if not isinstance(linear.weight, PackedWeight):
        raise Unknown
    return linear.weight, linear.bias


def _optional(norm: Any) -> tuple[Any, ...] | None:
    return None if norm is None else norm_parts(norm)


def norm_parts(norm: Any) -> tuple[Any, ...]:
    """Whether it is a root mean square's, weight, bias, eps. Raises Unknown."""
    if isinstance(norm, LayerNorm):
        return False, norm.weight, norm.bias, norm.eps
    if isinstance(norm, RMSNorm):
        return True, norm.weight, None, norm.eps
    raise Unknown
