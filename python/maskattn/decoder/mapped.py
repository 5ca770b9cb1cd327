"""A safetensors file mapped into memory: its pages are read when they are used, and shared by all who map it.

The format: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
import math
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - so that NumPy knows the names of small floats
import numpy as np
import numpy.typing as npt

#: Of numbers, by the format's names. It has more, and will: tensors of those are there, but are no arrays.
_NUMPY = {"BOOL": "bool", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_NUMPY |= {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_NUMPY |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
#: Bytes after which pages are let go.
_READ = 4 << 20


class MappedFile:
    """Tensors as read-only arrays over the file's memory.

    Attributes:
        name: of the file.
        metadata: its own, as the header has it.
        kinds: of each tensor, in the format's words.
        shapes: of each tensor.

    Args:
        remedy: what helps where the file is broken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or its header describes what is not there.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self.name, self._remedy, self._read = path.name, remedy, 0
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
        self._starts = {name: self._checked(name, entry) for name, entry in header.items()}
        self.kinds: dict[str, str] = {name: entry["dtype"] for name, entry in header.items()}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(entry["shape"]) for name, entry in header.items()}
        size = len(self._memory) - self._data
        of_tensors = sum(stop - start for start, stop in (entry["data_offsets"] for entry in header.values()))
        if of_tensors != size:
            raise self.broken(f"tensors of {size} bytes, as it has", f"{of_tensors}")

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor.

        Raises:
            KeyError: there is none of that name.
            ValueError: NumPy has no such numbers.
        """
        shape, kind = self.shapes[name], self.kinds[name]
        if kind not in _NUMPY:
            raise ValueError(
                f"{name} must have a dtype of {', '.join(_NUMPY)}, got {kind} in {self.name}; save it in one of these"
            )
        dtype = np.dtype(_NUMPY[kind])
        return np.frombuffer(self._memory, dtype, math.prod(shape), self._starts[name]).reshape(shape)

    def names(self) -> list[str]:
        return list(self.shapes)

    def took(self, nbytes: int) -> None:
        """So much will be read once: pages count as ours when they have been, and are let go now and then."""
        self._read += nbytes
        if self._read >= _READ and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._read = 0

    def broken(self, wanted: str, got: str) -> ValueError:
        """The error to raise."""
        return ValueError(f"{self.name} must have {wanted}, got {got}; {self._remedy}")

    def _checked(self, name: str, entry: Any) -> int:
        """Where it is, in bytes from the start of the file; all of it is inside, or nothing of the file is used."""
        try:
            kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            kind = None
        if not isinstance(kind, str):
            raise self.broken(f"dtype, shape and data_offsets of {name} in its header", f"{entry!r:.80}")
        if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
            raise self.broken(f"integers from 0 up as shape and data_offsets of {name}", f"{entry!r:.80}")
        size, nbytes = len(self._memory) - self._data, stop - start
        if kind in _NUMPY:
            nbytes = math.prod(shape) * np.dtype(_NUMPY[kind]).itemsize
        if not start <= stop <= size or stop - start != nbytes:
            raise self.broken(f"all bytes of {name}", f"shape {shape} from {start} to {stop} of {size}")
        place: int = self._data + start
        return place
