"""What generation remembers: the keys and values of the tokens so far, and those of the sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.multi_head import KeyValues


@dataclass(frozen=True)
class Memory:
    """Cross-attention keys and values, projected once per source.

    ``key_values``: one pair per decoder layer.
    ``lengths``: shape (batch,); keys past it are padding, and attention never reads them.
    """

    key_values: tuple[KeyValues, ...]
    lengths: IntArray

    def keep(self, rows: npt.NDArray[np.bool_]) -> Memory:
        """Only the sequences marked True."""
        pairs = tuple(KeyValues(keys[rows], values[rows]) for keys, values in self.key_values)
        return Memory(pairs, self.lengths[rows])


class SelfCache:
    """Self-attention keys and values of every decoder layer, allocated ahead and doubled when full.

    All sequences of the batch have the same ``length``: they start together, and finished ones leave.
    """

    def __init__(self, layers: int, batch: int, heads: int, head_dim: int, capacity: int = 32) -> None:
        self.length = 0
        self._keys = np.empty((layers, batch, heads, capacity, head_dim), np.float32)
        self._values = np.empty_like(self._keys)

    def layer(self, layer: int) -> LayerOfCache:
        """One layer's share, as layers take it."""
        return LayerOfCache(self, layer)

    def append(self, layer: int, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Store (batch, heads, new, head_dim) behind the tokens so far; returns views of all, the new included.

        ``length`` stays until ``advance``, because every layer stores the same tokens.
        """
        end = self.length + keys.shape[2]
        if end > self._keys.shape[3]:
            self._grow(end)
        self._keys[layer, :, :, self.length : end] = keys
        self._values[layer, :, :, self.length : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` as stored, after the last layer."""
        self.length += tokens

    def keep(self, rows: npt.NDArray[np.bool_]) -> None:
        """Drop the sequences marked False."""
        self._keys, self._values = self._keys[:, rows], self._values[:, rows]

    def _grow(self, needed: int) -> None:
        # Doubling makes the copies of a whole generation cost no more than one copy of its final length.
        shape = list(self._keys.shape)
        shape[3] = max(needed, 2 * shape[3])
        for name in ("_keys", "_values"):
            old, new = getattr(self, name), np.empty(shape, np.float32)
            new[:, :, :, : self.length] = old[:, :, :, : self.length]
            setattr(self, name, new)


@dataclass(frozen=True)
class LayerOfCache:
    """A :class:`~maskattn.decoder.multi_head.LayerCache`; ``SelfCache.advance`` counts for all layers."""

    cache: SelfCache
    layer: int

    @property
    def length(self) -> int:
        return self.cache.length

    def append(self, keys: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self.cache.append(self.layer, keys, values)
