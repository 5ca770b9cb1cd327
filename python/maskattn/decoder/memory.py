"""What a decoder reads besides its own tokens, by cross-attention or in front of them; and a view of who reads what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.multi_head import KeyValues

#: float32 or bfloat16.
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Memory:
    """Cross-attention keys and values, projected once per source; sources stand one behind the other, without padding.

    ``key_values``: a pair (tokens, heads, head_dim) per decoder layer.
    ``starts``, ``lengths``: shape (batch,): where each sequence's source begins, and how long it is. Several sequences
    may read the same one.
    """

    key_values: tuple[tuple[Array, Array], ...]
    starts: IntArray
    lengths: IntArray

    def reorder(self, sequences: IntArray) -> Memory:
        """Sequence ``i`` reads what sequence ``sequences[i]`` did, shape (new batch,); as of a cache."""
        return replace(self, starts=self.starts[sequences], lengths=self.lengths[sequences])

    def padded(self, layer: int) -> KeyValues:
        """Of one layer, as layers that are called by themselves take them: (batch, heads, longest, head_dim)."""
        longest = int(self.lengths.max())
        # Past a sequence's end stands what is there: nobody sees it.
        rows = np.minimum(self.starts[:, None] + np.arange(longest), len(self.key_values[layer][0]) - 1)
        keys, values = (array[rows].transpose(0, 2, 1, 3) for array in self.key_values[layer])
        return KeyValues(keys, values)


class MemoryRows:
    """Memories of a batch in places of one length, which grow: who comes takes a free one, and nobody is moved."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Any, Any]] = []  # (count * length, heads, head_dim) of each layer
        self._count, self._length = 0, 0
        self._places = np.zeros(0, np.int64)  # of each sequence
        self._lengths = np.zeros(0, np.int64)

    def view(self) -> Memory:
        """What a decoder reads; true until a row comes or leaves."""
        return Memory(tuple(self._pairs), self._places * self._length, self._lengths)

    def join(self, memory: Memory) -> None:
        """A row more; ``memory`` is of one sequence."""
        length = int(memory.lengths[0])
        place = next(i for i in range(self._count + 1) if i not in self._places)
        if place == self._count or length > self._length:
            self._grow(memory, max(2 * self._count, 1) if place == self._count else self._count, length)
        for stored, new in zip(self._pairs, memory.key_values, strict=True):
            for array, rows in zip(stored, new, strict=True):
                self._copy(array, place * self._length, rows, 0, length)
        self._places, self._lengths = np.append(self._places, place), np.append(self._lengths, length)

    def reorder(self, sequences: IntArray) -> None:
        """Sequence ``i`` is what ``sequences[i]`` was; others leave."""
        self._places, self._lengths = self._places[sequences], self._lengths[sequences]

    def _grow(self, like: Memory, count: int, length: int) -> None:
        """``count`` places of at least ``length`` rows, and in them what was in those that there were."""
        length = max(self._rows_for(length), self._length)
        pairs = []
        for layer, new in enumerate(like.key_values):
            made = tuple(self._room(array, count * length) for array in new)
            for to, old in zip(made, self._pairs[layer] if self._pairs else (), strict=bool(self._pairs)):
                for place in range(self._count):
                    self._copy(to, place * length, old, place * self._length, self._length)
            pairs.append((made[0], made[1]))
        self._pairs, self._count, self._length = pairs, count, length

    def _rows_for(self, length: int) -> int:
        """Of a place for so many."""
        return length

    def _room(self, like: Any, rows: int) -> Any:
        return np.empty((rows, *like.shape[1:]), like.dtype)

    def _copy(self, to: Any, at: int, source: Any, first: int, count: int) -> None:
        to[at : at + count] = source[first : first + count]


@dataclass(frozen=True)
class Prefix:
    """Embeddings in front of the tokens, one array (n, width) per sequence: the ``E`` of ``[E; o]``."""

    embeddings: Sequence[FloatArray]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(rows) for rows in self.embeddings)

    def before(self, x: FloatArray, x_lengths: IntArray | None) -> tuple[FloatArray, IntArray]:
        """The prefixes and (batch, len, width) behind them as one padded array, and its lengths."""
        lengths = np.full(len(x), x.shape[1]) if x_lengths is None else x_lengths
        whole = lengths + np.array(self.lengths)
        joined = np.zeros((len(x), int(whole.max()), x.shape[2]), np.float32)
        for row, rows, own, n in zip(joined, self.embeddings, x, lengths, strict=True):
            row[: len(rows)] = rows
            row[len(rows) : len(rows) + n] = own[:n]
        return joined, whole

    def reorder(self, sequences: IntArray) -> Prefix:
        """As :meth:`Memory.reorder`."""
        return Prefix([self.embeddings[i] for i in sequences])


@dataclass(frozen=True)
class CrossView:
    """Looks at cross-attention weights while a decoder runs.

    ``heads``: the heads that are wanted of each wanted layer; None: all of that layer.
    ``take``: called as ``take(layer, weights)`` behind a wanted layer; weights (batch, len(heads), new, source_len).
    """

    heads: Mapping[int, Sequence[int] | None]
    take: Callable[[int, FloatArray], object]
    _last: list[FloatArray] = field(default_factory=list, init=False)

    @property
    def deepest(self) -> int:
        """The last layer that is wanted."""
        return max(self.heads)

    def options(self, layer: int) -> dict[str, Any]:
        """What the layer is called with."""
        return {"cross_weights": self._last, "cross_heads": self.heads[layer]} if layer in self.heads else {}

    def collect(self, layer: int) -> None:
        """The layer has run."""
        if self._last:
            self.take(layer, self._last.pop())
