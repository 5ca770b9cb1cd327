"""The sequences of a batch that changes between steps, and what they read."""

from __future__ import annotations

import numpy as np

from maskattn.cache import KVCache
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.multi_head import KeyValues


class MemoryRows:
    """Memories of a batch, row by row in arrays that grow: who comes or leaves moves one row, and no other."""

    def __init__(self) -> None:
        self._pairs: list[tuple[FloatArray, FloatArray]] = []
        self._lengths = np.zeros(0, np.int64)

    def view(self) -> Memory:
        """What a decoder reads; true until a row comes or leaves."""
        rows, longest = len(self._lengths), int(self._lengths.max(initial=0))
        pairs = tuple(KeyValues(k[:rows, :, :longest], v[:rows, :, :longest]) for k, v in self._pairs)
        return Memory(pairs, self._lengths)

    def join(self, memory: Memory) -> None:
        """A row more; ``memory`` is of one sequence."""
        row, length = len(self._lengths), memory.key_values[0].keys.shape[2]
        if not self._pairs:
            self._pairs = [(_room(k, 1, length), _room(v, 1, length)) for k, v in memory.key_values]
        rows, longest = self._pairs[0][0].shape[0], self._pairs[0][0].shape[2]
        if row == rows or length > longest:
            rows, longest = (2 * rows if row == rows else rows), max(length, longest)
            self._pairs = [(_grown(k, rows, longest), _grown(v, rows, longest)) for k, v in self._pairs]
        for stored, new in zip(self._pairs, memory.key_values, strict=True):
            for array, rows_of in zip(stored, new, strict=True):
                array[row, :, :length] = rows_of[0]
        self._lengths = np.append(self._lengths, length)

    def reorder(self, sequences: IntArray) -> None:
        """Sequence ``i`` is what ``sequences[i]`` was: itself, or one past the new end."""
        for i in np.flatnonzero(sequences != np.arange(len(sequences))):
            row, length = sequences[i], self._lengths[sequences[i]]
            for array in (array for pair in self._pairs for array in pair):
                array[i, :, :length] = array[row, :, :length]
        self._lengths = self._lengths[sequences]


class Running:
    """Where the decoder stands in each sequence of the batch.

    Attributes:
        cache: of all sequences.
        hidden: shape (batch, width), the state that predicts each one's next token.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self.cache = model, cache
        self._memory = None if model.encoder is None else MemoryRows()
        self._read: Memory | None = None
        self.hidden: FloatArray = np.zeros((0, 0), np.float32)

    def join(self, cache: KVCache, memory: Memory | None, hidden: FloatArray) -> None:
        """One sequence more, whose ``hidden`` (1, width) predicts its next token; ``cache`` is empty then."""
        self.cache.take(cache)
        if self._memory is not None and memory is not None:
            self._memory.join(memory)
            self._read = self._memory.view()
        self.hidden = np.concatenate([self.hidden, hidden]) if len(self.hidden) else hidden

    def leave(self, stay: IntArray) -> IntArray:
        """Only the sequences ``stay``, ascending, go on. Returns their new order: the last ones fill the gaps."""
        order = np.arange(len(stay))
        gaps = np.setdiff1d(order, stay)
        order[gaps] = stay[len(stay) - len(gaps) :]
        self.cache.reorder(order)
        if self._memory is not None:
            self._memory.reorder(order)
            self._read = self._memory.view()
        self.hidden = self.hidden[order]
        return order

    def append(self, tokens: IntArray) -> None:
        """Move on by one token per sequence, shape (batch,)."""
        self.hidden = self._model.decode(tokens[:, None], self._read, self.cache)[:, -1]


def _room(like: FloatArray, rows: int, length: int) -> FloatArray:
    return np.empty((rows, like.shape[1], length, like.shape[3]), np.float32)


def _grown(array: FloatArray, rows: int, length: int) -> FloatArray:
    made = _room(array, rows, length)
    made[: array.shape[0], :, : array.shape[2]] = array
    return made
