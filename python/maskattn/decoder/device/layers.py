"""A stack on the device: the counterpart of ``CoreLayers``, with the embeddings before it and the norm behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskattn import masks
from maskattn.cache import KVCache
from maskattn.cache.tables import Lengths
from maskattn.cuda.module import compiled
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.core_layers import Unknown, layer_parts, map_parts, norm_parts
from maskattn.decoder.device.memory import DeviceMemory, page_for
from maskattn.decoder.device.sound import DeviceSound
from maskattn.decoder.device.spans import spans
from maskattn.decoder.device.uploading import Uploads
from maskattn.decoder.inputs import SoundEmbedding, TokenEmbedding
from maskattn.decoder.layers import DecoderLayer
from maskattn.decoder.projection import Linear
from maskattn.decoder.rotary import Rotation
from maskattn.decoder.weights import LayerStack


class DeviceLayers:
    """A stack whose weights have been copied to the device.

    Raises:
        NotImplementedError: it is made of something that the device does not know.
    """

    def __init__(self, stack: LayerStack[Any], uploads: Uploads) -> None:
        self._device, self._dtype = uploads.device, uploads.dtype
        self._width = stack.sizes.width
        self._groups = _groups(stack.masks)
        bias = stack.positions.bias
        table, slopes = (None, None) if bias is None else bias._lower()
        try:
            layers = [uploads(layer_parts(layer, masks.Full())) for layer in stack.layers]
            norm, final_map = _final(stack.final)
            crossed = [layer.cross for layer in stack.layers if isinstance(layer, DecoderLayer) and layer.cross]
            # Of each layer with cross-attention, what makes keys and values, and the norm of keys.
            self._memory_maps = [(layer[3][9], layer[3][3]) for layer in layers if layer[3] is not None]
        except Unknown:
            raise _unknown("layers of parts that are the core's own") from None
        if slopes is not None or any(layer.placement != stack.layers[0].placement for layer in stack.layers):
            raise _unknown("layers that are alike, without ALiBi")
        self._sizes = [(cross._groups, cross.head_dim) for cross in crossed]
        place = stack.layers[0].placement
        self._stack = compiled.DeviceStack(
            self._device,
            self._dtype,
            self._width,
            (place.before, place.after, place.parallel),
            layers,
            None if table is None else uploads.floats(table),
            _embedding(stack, uploads),
            uploads(norm),
            uploads(final_map),
        )
        heard = stack.embed if isinstance(stack.embed, SoundEmbedding) else None
        self.sound = None if heard is None else DeviceSound(heard, uploads, self._stack.apply)

    @property
    def graphs(self) -> int:
        """Shapes of steps that have been met, each of which is recorded when it comes again."""
        return self._stack.graphs

    def run(
        self,
        counts: IntArray,
        *,
        tokens: IntArray | None = None,
        segments: IntArray | None = None,
        x: FloatArray | compiled.DeviceArray | None = None,
        cache: KVCache | None = None,
        seen: Sequence[masks.Mask] | None = None,
        memory: DeviceMemory | None = None,
        rotation: Rotation | None = None,
        taps: Sequence[int] = (),
    ) -> tuple[compiled.DeviceArray, list[compiled.DeviceArray]]:
        """New positions of all sequences, one sequence behind the other, through the layers and what is behind them.

        Args:
            counts: shape (batch,): how many of each, from 0 up.
            tokens, segments: shape (rows,); or
            x: shape (rows, width), what the first layer reads; or, where it is the compiled module's array, the same
                before positions are added.
            cache: holds the positions before them, and gets their keys and values. None: there are none before them.
            seen: masks in place of the layers'.
            memory: what cross-attention reads.
            rotation: of each row.
            taps: layers before which the states are wanted, too.

        Returns:
            The compiled module's arrays, float32: (rows, width) of the states, and those of each of ``taps``.

        Raises:
            ValueError: a sequence would be longer than the cache's capacity; nothing is stored then.
        """
        stored: IntArray = np.zeros(len(counts), np.int64) if cache is None else cache[0].lengths
        pools = tables = None
        if cache is not None:
            for layer in cache:
                layer.make_room(counts)
            pools, tables = [(layer.k_pool, layer.v_pool) for layer in cache], _tables(cache)
        read = None
        if memory is not None:
            read = memory.key_values, memory.sources, memory.lengths, memory.page
        rows = [spans(mask, stored, counts) for mask in self._distinct(seen)]
        states, tapped = self._stack.run(
            tokens, segments, x, counts, stored, pools, tables, rows, self._groups[1], read, rotation, list(taps)
        )
        if cache is not None:
            filled = Lengths.of(stored + counts)
            for layer in cache:
                layer.took(filled)
        return states, tapped

    def memory(self, x: compiled.DeviceArray, lengths: IntArray) -> DeviceMemory:
        """What cross-attention of every layer reads of an encoder's output (rows, width), the compiled module's."""
        page = page_for(lengths)
        sources = np.repeat(np.arange(len(lengths)), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        pairs: tuple[Any, ...] = tuple(
            self._stack.project_memory(parts, norm, heads, dim, x, sources, positions, len(lengths), page, self._dtype)
            for (parts, norm), (heads, dim) in zip(self._memory_maps, self._sizes, strict=True)
        )
        return DeviceMemory(pairs, np.arange(len(lengths)) * page, np.asarray(lengths), page)

    def _distinct(self, seen: Sequence[masks.Mask] | None) -> list[masks.Mask]:
        first, group_of = self._groups
        return first if seen is None else [seen[group_of.index(group)] for group in range(len(first))]


def _groups(seen: Sequence[masks.Mask]) -> tuple[list[masks.Mask], list[int]]:
    """The masks that differ, and which of them is each layer's."""
    first: list[masks.Mask] = []
    for mask in seen:
        if mask not in first:
            first.append(mask)
    return first, [first.index(mask) for mask in seen]


def _tables(cache: KVCache) -> IntArray:
    """Block tables (layers or 1, batch, pages of a sequence); entries without a page name one that nobody sees."""
    tables = [layer.tables for layer in cache]
    alike = all(np.array_equal(table, tables[0]) for table in tables[1:])
    return np.maximum(np.stack(tables[:1] if alike else tables), 0)


def _embedding(stack: LayerStack[Any], uploads: Uploads) -> tuple[Any, ...]:
    embed, positions = stack.embed, stack.positions
    if not isinstance(embed, TokenEmbedding):
        heard: tuple[Any, ...] = uploads((None, 1.0, None, None, positions.table, positions.offset, None))
        return heard
    project = None if embed.project is None else map_parts(embed.project)
    described = (embed.table, float(embed.scale), project, embed.segments, positions.table, positions.offset)
    made: tuple[Any, ...] = uploads((*described, _optional(embed.norm)))
    return made


def _final(functions: Sequence[Any]) -> tuple[Any, Any]:
    """The description of the norm, and of the map, behind a stack; None where there is none."""
    maps = [function for function in functions if isinstance(function, Linear)]
    norms = [function for function in functions if not isinstance(function, Linear)]
    if len(maps) > 1 or len(norms) > 1 or (maps and functions[-1] is not maps[0]):
        raise Unknown
    return _optional(norms[0] if norms else None), map_parts(maps[0]) if maps else None


def _optional(norm: Any) -> tuple[Any, ...] | None:
    return None if norm is None else norm_parts(norm)


def _unknown(wanted: str) -> NotImplementedError:
    return NotImplementedError(f'device="cuda" must be given a model with {wanted}, got others; load it on the CPU')
