"""A safetensors file mapped into memory: its pages are read when they are used, and shared by all who map it."""

from __future__ import annotations

import json
import math
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_NUMPY: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F32": np.dtype(np.float32)}


class MappedFile:
    """Tensors of bytes and of float32 as read-only arrays over the file's memory.

    Attributes:
        name: of the file.
        metadata: its own, as the header has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or its header describes what is not there.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with path.open("rb") as file:
            if path.stat().st_size < 8:
                raise self.broken("a header", "an empty file")
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # pages that are not in memory yet come in as huge ones, where there are
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        length = int.from_bytes(self._memory[:8], "little")
        self._data = 8 + length
        if self._data > len(self._memory):
            raise self.broken(f"a header of {length} bytes", f"{len(self._memory)} bytes in all")
        try:
            header = json.loads(self._memory[8 : self._data])
        except (ValueError, RecursionError) as error:
            raise self.broken("a header in JSON", str(error)) from error
        if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
            raise self.broken("a header that is a JSON object", f"{header!r:.40}")
        self.metadata: dict[str, Any] = header.pop("__metadata__", {})
        self._places = {name: self._checked(name, entry) for name, entry in header.items()}

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """The tensor, or None where there is none of that name."""
        if name not in self._places:
            return None
        dtype, shape, start = self._places[name]
        return np.frombuffer(self._memory, dtype, math.prod(shape), start).reshape(shape)

    def names(self) -> list[str]:
        return list(self._places)

    def broken(self, wanted: str, got: str) -> ValueError:
        """The error to raise."""
        return ValueError(f"{self.name} must have {wanted}, got {got}; convert the model again")

    def _checked(self, name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        """Where it is, in bytes from the start of the file; all of it is inside, or nothing of the file is used."""
        try:
            dtype, shape, (start, stop) = _NUMPY[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise self.broken(f"dtype, shape and data_offsets of {name} in its header", f"{entry!r:.80}") from None
        if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
            raise self.broken(f"integers from 0 up as shape and data_offsets of {name}", f"{entry!r:.80}")
        if stop - start != math.prod(shape) * dtype.itemsize or self._data + stop > len(self._memory):
            size = len(self._memory) - self._data
            raise self.broken(f"all bytes of {name}", f"shape {shape} from {start} to {stop} of {size}")
        if (self._data + start) % dtype.itemsize:
            raise self.broken(f"{name} at a multiple of its item's size", f"{self._data + start}")
        return dtype, shape, self._data + start
