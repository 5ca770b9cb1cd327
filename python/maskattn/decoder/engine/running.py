"""The sequences of a batch that changes between steps, and what they read."""

from __future__ import annotations

import numpy as np

from maskattn.cache import KVCache
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.memory import Array, Memory
from maskattn.decoder.model import Transformer


class MemoryRows:
    """Memories of a batch in places of one length, which grow: who comes takes a free one, and nobody is moved."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Array, Array]] = []  # (places, length, heads, head_dim) of each layer
        self._places = np.zeros(0, np.int64)  # of each sequence
        self._lengths = np.zeros(0, np.int64)

    def view(self) -> Memory:
        """What a decoder reads; true until a row comes or leaves."""
        length = self._pairs[0][0].shape[1]
        pairs = tuple((k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:])) for k, v in self._pairs)
        return Memory(pairs, self._places * length, self._lengths)

    def join(self, memory: Memory) -> None:
        """A row more; ``memory`` is of one sequence."""
        own, length = memory.key_values, int(memory.lengths[0])
        if not self._pairs:
            self._pairs = [(_room(k, 1, length), _room(v, 1, length)) for k, v in own]
        places, longest = self._pairs[0][0].shape[:2]
        place = next(i for i in range(places + 1) if i not in self._places)
        if place == places or length > longest:
            places, longest = (2 * places if place == places else places), max(length, longest)
            self._pairs = [(_grown(k, places, longest), _grown(v, places, longest)) for k, v in self._pairs]
        for stored, new in zip(self._pairs, own, strict=True):
            for array, rows in zip(stored, new, strict=True):
                array[place, :length] = rows[:length]
        self._places, self._lengths = np.append(self._places, place), np.append(self._lengths, length)

    def reorder(self, sequences: IntArray) -> None:
        """Sequence ``i`` is what ``sequences[i]`` was; others leave."""
        self._places, self._lengths = self._places[sequences], self._lengths[sequences]


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
        self.hidden = self._model.step(tokens, self._read, self.cache)


def _room(like: Array, places: int, length: int) -> Array:
    return np.empty((places, length, *like.shape[-2:]), like.dtype)


def _grown(array: Array, places: int, length: int) -> Array:
    made = _room(array, places, length)
    made[: array.shape[0], : array.shape[1]] = array
    return made
