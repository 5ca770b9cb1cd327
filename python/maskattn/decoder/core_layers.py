"""A stack of layers as one call of the core, where it knows all that the layers are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskattn import _core, masks
from maskattn._core import LayerStack, PackedWeight
from maskattn.cache import KVCache
from maskattn.cache.tables import Lengths
from maskattn.decoder.activations import CoreActivation, identity
from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.inputs import TokenEmbedding
from maskattn.decoder.layers import DecoderLayer, EncoderLayer, FeedForward, GatedFeedForward
from maskattn.decoder.memory import Memory
from maskattn.decoder.multi_head import MultiHeadAttention
from maskattn.decoder.norms import LayerNorm, RMSNorm
from maskattn.decoder.positions import Positions
from maskattn.decoder.projection import Linear
from maskattn.decoder.rotary import Rotation
from maskattn.decoder.weights import LayerStack as Stack

_STORED = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))


class Unknown(Exception):
    """A layer is made of something that the core does not know."""


class SharedRows(NamedTuple):
    """Rows whose keys and values other sequences of a cache store as well, since they begin with the same tokens.

    ``counts``: shape (batch,): how many each sequence takes from others.
    ``places``: shape (n, 3), int64: the row, the sequence that takes it, and the position that it has there.
    """

    counts: IntArray
    places: IntArray

    @classmethod
    def of(cls, owners: IntArray, real: BoolArray, starts: IntArray) -> tuple[SharedRows, BoolArray]:
        """Also which tokens are rows: those that a sequence computes itself.

        Args:
            owners: shape (batch, new): the sequence that computes each token.
            real: shape (batch, new): which tokens there are.
            starts: shape (batch,): the positions of the first tokens.
        """
        own: BoolArray = real & (owners == np.arange(len(owners))[:, None])
        numbers = own.ravel().cumsum().reshape(own.shape) - 1
        sequences, places = np.nonzero(real & ~own)
        rows = numbers[owners[sequences, places], places]
        shared = np.stack([rows, sequences, starts[sequences] + places], axis=1)
        return cls((real & ~own).sum(axis=1), shared), own


class CoreLayers:
    """Layers as the core takes them: the bits of layers called one by one, without their Python and without padding."""

    def __init__(self, core: LayerStack, positions: Positions, steps: bool) -> None:
        self._core, self._positions, self._steps = core, positions, steps

    @classmethod
    def of(cls, stack: Stack[Any]) -> CoreLayers | None:
        """None where a layer needs its Python, as for a norm or an activation of the user's."""
        layers, positions = stack.layers, stack.positions
        table, slopes = (None, None) if positions.bias is None else positions.bias._lower()
        first = layers[0].placement
        try:
            described = [layer_parts(layer, mask) for layer, mask in zip(layers, stack.masks, strict=True)]
        except Unknown:
            return None
        if slopes is not None or any(layer.placement != first for layer in layers):
            return None
        width, rounds, ends = layers[0].attention.width, layers[0].attention.dtype == "bfloat16", _ends(stack)
        core = LayerStack(described, width, first.before, first.after, first.parallel, table, rounds, ends)
        return cls(core, positions, ends is not None)

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
        shared: SharedRows | None = None,
    ) -> None:
        """Move states through the layers, in place.

        Args:
            x: shape (rows, width), float32: new positions of all sequences, one sequence behind the other.
            counts: shape (batch,): how many of each, from 0 up.
            cache: holds the positions before them, and gets their keys and values. None: there are none before them.
            seen: masks in place of the layers'.
            memory: what cross-attention reads.
            rotation: of each row.
            shared: positions in front of a sequence's own rows whose keys and values are other rows'.

        Raises:
            ValueError: a sequence would be longer than the cache's capacity; nothing is stored then.
        """
        stored = None
        if cache is not None:
            before = 0 if shared is None else shared.counts
            stored = cache[0].lengths + before
            for layer in cache:
                layer.make_room(counts + before)
        expressions = None if seen is None else [_expression(mask) for mask in seen]
        places = None if shared is None else shared.places
        self._core.run(x, counts, cache, stored, expressions, _read(memory), rotation, threads, places)
        if stored is not None and cache is not None:
            filled = Lengths.of(stored + counts)
            for layer in cache:
                layer.took(filled)

    def remember(self, x: FloatArray, key_values: npt.NDArray[Any]) -> None:
        """Keys and values of the encoder's output (tokens, width), to (layers, 2, heads, tokens, head_dim)."""
        self._core.remember(x, key_values, None)

    def steps(self, cache: KVCache, memory: Memory | None) -> Steps | None:
        """Steps behind the sequences of a cache; None where they need more than rows behind those that there are."""
        if not self._steps or not self.takes(cache) or not cache[0].has_own_page_each or cache[0].extremes[0] == 0:
            return None
        steps = Steps(self._core, self._positions, cache, memory)
        return steps if steps.go_on() else None


class Steps:
    """One token behind each sequence, again and again: what does not change between two steps is looked at once."""

    def __init__(self, core: LayerStack, positions: Positions, cache: KVCache, memory: Memory | None) -> None:
        self._core = _core.Steps(core, cache.batch, cache, _read(memory))
        self._positions, self._filled = positions, cache[0].filled
        self._layers, self._capacity = [(layer, layer.k_pool) for layer in cache], cache[0].capacity

    def go_on(self) -> bool:
        """Whether the next token is a row more of the same memory: nobody else has changed the cache, or shares it."""
        filled = self._filled
        for layer, pool in self._layers:
            if layer.filled is not filled or layer.k_pool is not pool or layer.shares:
                return False
        return filled.extremes[1] < self._capacity

    def __call__(self, tokens: IntArray) -> FloatArray:
        """(batch,) -> (batch, width): the states behind the layers and the norms after them."""
        stored = self._filled.each
        rotation = self._positions.rotation_of_rows(stored, stored + 1)
        hidden = self._core.run(tokens, stored, rotation, None)
        self._filled = filled = self._filled.grown(1)
        for layer, _ in self._layers:
            layer.took(filled)
        return hidden


def _read(memory: Memory | None) -> tuple[Any, ...] | None:
    return None if memory is None else (memory.key_values, memory.starts, memory.lengths)


def _ends(stack: Stack[Any]) -> tuple[Any, ...] | None:
    """Embeddings and last norms, for :class:`Steps`; None where they are more than that."""
    embed, positions = stack.embed, stack.positions
    if not isinstance(embed, TokenEmbedding) or embed.project is not None:
        return None
    segment = None if embed.segments is None else embed.segments[0]
    try:
        norms, norm = tuple(norm_parts(part) for part in stack.final), _optional(embed.norm)
    except Unknown:
        return None
    return embed.table, float(embed.scale), segment, positions.table, positions.offset, norms, norm


def layer_parts(layer: EncoderLayer | DecoderLayer, mask: masks.Mask) -> tuple[Any, ...]:
    """A layer as the core takes it: tuples of weights, norms and numbers. Raises Unknown."""
    cross, cross_norm = (layer.cross, layer.cross_norm) if isinstance(layer, DecoderLayer) else (None, None)
    if cross is None or cross_norm is None:
        cross = cross_norm = None
    elif cross._kv is None:
        raise Unknown
    return (
        _attention(layer.attention, layer.attention._qkv),
        norm_parts(layer.attention_norm),
        _optional(layer.attention_inner_norm),
        None if cross is None else _attention(cross, cross.q, cross._kv),
        _optional(cross_norm),
        _feed_forward(layer.feed_forward),
        norm_parts(layer.feed_forward_norm),
        _optional(layer.feed_forward_inner_norm),
        _expression(mask),
        isinstance(mask, masks.Causal),
    )


def _expression(mask: masks.Mask) -> Any:
    return None if isinstance(mask, masks.Full) else mask.expr


def _attention(attention: MultiHeadAttention, inputs: Linear | None, memory: Linear | None = None) -> tuple[Any, ...]:
    if inputs is None:
        raise Unknown
    head_dim, kv_heads = attention.head_dim, attention.kv_heads or attention.heads
    scale = 1 / math.sqrt(head_dim) if attention.scale is None else attention.scale
    norms = _optional(attention.q_norm), _optional(attention.k_norm)
    sizes = attention.heads, kv_heads, head_dim
    kept = None if memory is None else map_parts(memory)
    return map_parts(inputs), map_parts(attention.out), *norms, *sizes, float(scale), float(attention.softcap), kept


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
