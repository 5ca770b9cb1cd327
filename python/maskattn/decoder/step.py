"""One token through all layers in one call of the core, where it knows all that the layers are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskattn import masks
from maskattn._core import DecoderStep, PackedWeight
from maskattn.cache import KVCache
from maskattn.decoder.activations import CoreActivation, identity
from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.layers import DecoderLayer, FeedForward, GatedFeedForward
from maskattn.decoder.memory import Memory
from maskattn.decoder.multi_head import MultiHeadAttention
from maskattn.decoder.norms import LayerNorm, RMSNorm
from maskattn.decoder.positions import Positions
from maskattn.decoder.projection import Linear
from maskattn.decoder.rotary import Rotation


class Unknown(Exception):
    """A layer is made of something that the core does not know."""


class Step:
    """The layers of a decoder as the core takes them: the bits of layers called one by one, without their Python."""

    def __init__(self, core: DecoderStep) -> None:
        self._core = core

    @classmethod
    def of(cls, layers: Sequence[DecoderLayer], seen: Sequence[masks.Mask], positions: Positions) -> Step | None:
        """None where a layer needs its Python, as for a norm or an activation of the user's.

        Args:
            seen: the mask of each layer's self-attention.
        """
        table, slopes = (None, None) if positions.bias is None else positions.bias._lower()
        first = layers[0].placement
        try:
            described = [_layer(layer, mask) for layer, mask in zip(layers, seen, strict=True)]
        except Unknown:
            return None
        if slopes is not None or any(layer.placement != first for layer in layers):
            return None
        width = layers[0].attention.width
        return cls(DecoderStep(described, width, first.before, first.after, first.parallel, table))

    def run(
        self,
        x: FloatArray,
        cache: KVCache,
        memory: Memory | None,
        rotation: Rotation | None,
        threads: int | None = None,
    ) -> bool:
        """Move the states (batch, 1, width) of new tokens through the layers, in place, and store them in ``cache``.

        Returns:
            Whether it could: where the cache must do more than to write behind what it holds, no token has moved.
        """
        if cache[0].dtype != np.float32 or not all(layer.make_room_in_place(1) for layer in cache):
            return False
        first = cache[0]
        cos, sin = (None, None) if rotation is None else rotation
        memories, lengths = (None, None) if memory is None else (memory.key_values, memory.lengths)
        self._core.run(x[:, 0], cache, first.lengths, first.kv_len, memories, lengths, cos, sin, threads)
        ends = first.lengths + 1
        for layer in cache:
            layer.took_in_place(ends, 1)
        return True


def _layer(layer: DecoderLayer, mask: masks.Mask) -> tuple[Any, ...]:
    has_cross = layer.cross is not None
    return (
        _attention(layer.attention, layer.attention._qkv),
        _norm(layer.attention_norm),
        _optional(layer.attention_inner_norm),
        _attention(layer.cross, layer.cross.q) if layer.cross is not None else None,
        _norm(layer.cross_norm) if has_cross else None,
        _feed_forward(layer.feed_forward),
        _norm(layer.feed_forward_norm),
        _optional(layer.feed_forward_inner_norm),
        # Under the look-ahead mask the last position sees all that is stored.
        None if isinstance(mask, masks.Causal) else mask.expr,
    )


def _attention(attention: MultiHeadAttention, inputs: Linear | None) -> tuple[Any, ...]:
    if inputs is None:
        raise Unknown
    head_dim, kv_heads = attention.head_dim, attention.kv_heads or attention.heads
    scale = 1 / math.sqrt(head_dim) if attention.scale is None else attention.scale
    norms = _optional(attention.q_norm), _optional(attention.k_norm)
    sizes = attention.heads, kv_heads, head_dim
    return _map(inputs), _map(attention.out), *norms, *sizes, float(scale), float(attention.softcap)


def _feed_forward(part: Any) -> tuple[Any, ...]:
    if isinstance(part, GatedFeedForward):
        return _map(part._gate_up), _map(part.down), _function(part.activation), True
    if isinstance(part, FeedForward):
        return _map(part.up), _map(part.down), _function(part.activation), False
    raise Unknown


def _function(activation: Any) -> int | None:
    if isinstance(activation, CoreActivation):
        return activation.number
    if activation is identity:
        return None
    raise Unknown


def _map(linear: Linear) -> tuple[PackedWeight, FloatArray | None]:
    if not isinstance(linear.weight, PackedWeight):
        raise Unknown
    return linear.weight, linear.bias


def _optional(norm: Any) -> tuple[Any, ...] | None:
    return None if norm is None else _norm(norm)


def _norm(norm: Any) -> tuple[Any, ...]:
    if isinstance(norm, LayerNorm):
        return False, norm.weight, norm.bias, norm.eps
    if isinstance(norm, RMSNorm):
        return True, norm.weight, None, norm.eps
    raise Unknown
