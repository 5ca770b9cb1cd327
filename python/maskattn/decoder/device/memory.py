"""What a decoder on the device reads of an encoder's output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn.cuda.module import compiled
from maskattn.decoder.memory import Memory, MemoryRows

#: Rows of a source are a multiple of it, so that a source is a page to attention.
_PAGE_MULTIPLE = 16


@dataclass(frozen=True)
class DeviceMemory(Memory):
    """A memory whose keys and values are the compiled module's arrays, every source ``page`` rows long."""

    page: int

    @property
    def sources(self) -> Any:
        """shape (batch,): which source each sequence reads."""
        return self.starts // self.page

    def on_host(self) -> Memory:
        """A copy that layers in Python can read."""
        pairs = tuple((keys.numpy(), values.numpy()) for keys, values in self.key_values)  # type: ignore[attr-defined]
        return Memory(pairs, self.starts, self.lengths)


def page_for(lengths: Any) -> int:
    """Rows for sources of these lengths."""
    return -(-int(np.max(lengths, initial=1)) // _PAGE_MULTIPLE) * _PAGE_MULTIPLE


class DeviceMemoryRows(MemoryRows):
    """:class:`MemoryRows` that are copied on the device alone."""

    def __init__(self, device: compiled.DecoderDevice) -> None:
        self._device = device
        super().__init__()

    def view(self) -> DeviceMemory:
        return DeviceMemory(tuple(self._pairs), self._places * self._length, self._lengths, self._length)

    def _rows_for(self, length: int) -> int:
        return page_for(length)

    def _room(self, like: Any, rows: int) -> Any:
        return compiled.DeviceArray(self._device, [rows, *like.shape[1:]], like.dtype)

    def _copy(self, to: Any, at: int, source: Any, first: int, count: int) -> None:
        row = math.prod(to.shape[1:])
        to.copy_from(at * row, source, first * row, count * row)
