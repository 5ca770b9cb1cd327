"""What a decoder on the device reads of an encoder's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn.cuda.module import compiled
from maskattn.decoder.device.uploading import on_device
from maskattn.decoder.memory import Memory

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


def upload(memory: Memory, device: compiled.DecoderDevice) -> DeviceMemory:
    """The sources that the sequences of ``memory`` read, copied to the device, each once."""
    starts, sources = np.unique(memory.starts, return_inverse=True)
    page = page_for(memory.lengths)
    # Past a source's end stands what is there: nobody sees it.
    rows = starts[:, None] + np.arange(page)
    pairs: list[Any] = []  # of the device's arrays, which are no NumPy arrays
    for keys, values in memory.key_values:
        within = np.minimum(rows, len(keys) - 1).reshape(-1)
        pairs.append((on_device(device, keys[within]), on_device(device, values[within])))
    return DeviceMemory(tuple(pairs), sources.reshape(-1) * page, memory.lengths, page)
