"""Tensors in files: what is known before they are read, and their rows as float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import FloatArray

#: Bytes of a file after which it is opened anew.
_MAPPED = 16 << 20
#: ``weight = (q - zero) * scale``: q (rows, inputs) from 0 to 15, scales and zeros (rows, inputs / group), float32.
Groups = tuple[npt.NDArray[np.uint8], FloatArray, FloatArray]
_DTYPES = ("F32", "F16", "BF16")


class Tensor(ABC):
    """A tensor that has not been read.

    Attributes:
        name: its own, of the tensor.
        file: the name of the file that holds it.
        shape: its extents.
        dtype: in which it is stored, as its format calls it.
        oriented: whether a matrix is (outputs, inputs) even where its family stores (inputs, outputs).
        optional: whether a model may leave it unread.
    """

    oriented = optional = False

    def __init__(self, name: str, file: str, shape: tuple[int, ...], dtype: str) -> None:
        self.name, self.file, self.shape, self.dtype = name, file, shape, dtype

    def float32(self) -> FloatArray:
        """All of it.

        Raises:
            ValueError: it is not stored as numbers that are known, or holds one that is not finite.
        """
        return self._checked(self._read(None, None, False))

    def rows(self, start: int, stop: int, transposed: bool = False) -> FloatArray:
        """Some rows of a matrix, or columns as rows; errors as of ``float32``."""
        return self._checked(self._read(start, stop, transposed))

    @property
    def group(self) -> int:
        """Inputs with one scale, a multiple of 32, where it can be had as ``groups``; 0: it cannot."""
        return 0

    @property
    def symmetric(self) -> bool:
        """Whether all zeros of its groups are 8."""
        return False

    def forget(self) -> None:  # noqa: B027 - most read nothing ahead
        """Let go of what was read for more than one answer; it can be read again."""

    def groups(self, start: int, stop: int, group: int) -> Groups:
        """Some rows as they are stored, without a loss; ``group`` divides its own."""
        raise NotImplementedError(f"{self.name} has no groups")

    @abstractmethod
    def _read(self, start: int | None, stop: int | None, transposed: bool) -> npt.NDArray[Any]:
        """Rows, or columns as rows; None: all."""

    def _checked(self, found: npt.NDArray[Any]) -> FloatArray:
        tensor = np.ascontiguousarray(found, np.float32)
        # The extremes of an array with a NaN are NaN: two passes and no array of flags.
        if tensor.size and not np.isfinite([tensor.min(), tensor.max()]).all():
            raise ValueError(
                f"{self.name} must hold finite numbers, got NaN or infinity in {self.file}; download it again, or save "
                "the model in float32 if it was converted to float16"
            )
        return tensor


class SafeTensor(Tensor):
    """A tensor of a safetensors file."""

    def __init__(self, file: SafeFile, name: str) -> None:
        view = file.slice(name)
        super().__init__(name, file.name, tuple(view.get_shape()), str(view.get_dtype()))
        self._file = file

    def stored(self, *places: slice) -> npt.NDArray[Any]:
        """A part of it in its own dtype."""
        found: npt.NDArray[Any] = self._file.slice(self.name)[places]
        self._file.took(found.nbytes)
        return found

    def _read(self, start: int | None, stop: int | None, transposed: bool) -> npt.NDArray[Any]:
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"{self.name} must be stored as F32, F16 or BF16, got {self.dtype} in {self.file}; "
                "save the model in one of these dtypes"
            )
        if start is None:
            return self.stored()
        rows = slice(start, stop)
        return self.stored(slice(None), rows).T if transposed else self.stored(rows)


class SafeFile:
    """A safetensors file, opened: its header has been read and checked, its tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        import ml_dtypes  # noqa: F401 - so that safetensors may read bfloat16

        self.name, self._path = path.name, path
        self._open()

    def tensors(self) -> dict[str, SafeTensor]:
        """All of them, by name; they keep the file."""
        return {name: SafeTensor(self, name) for name in self._file.keys()}  # noqa: SIM118 - it is no dict

    def slice(self, name: str) -> Any:
        """What reads parts of a tensor when indexed."""
        return self._file.get_slice(name)

    def took(self, nbytes: int) -> None:
        """Open the file anew now and then: what has been read stays mapped while it is open, and counts as ours."""
        self._read += nbytes
        if self._read > _MAPPED:
            self._open()

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        opened = cast("Any", safe_open)
        try:
            self._file, self._read = opened(self._path, framework="np"), 0
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.name} must be a safetensors file, got {error}; download it again") from error
