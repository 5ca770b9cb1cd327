"""Tensors in files: what is known before they are read, and their rows as float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from operator import mul
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.mapped import MappedFile

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
        """All of it, in memory of its own.

        Raises:
            ValueError: it is not stored as numbers that are known, or holds one that is not finite.
        """
        whole: FloatArray = self._checked(self._read(None, None, False)).copy()
        return whole

    def rows(self, start: int, stop: int, transposed: bool = False) -> FloatArray:
        """Some rows of a matrix, or columns as rows, maybe over the file's memory; errors as of ``float32``."""
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

    def __init__(self, file: MappedFile, name: str) -> None:
        super().__init__(name, file.name, file.shapes[name], file.kinds[name])
        self._file = file

    def stored(self, *places: slice) -> npt.NDArray[Any]:
        """A part of it in its own dtype, over the file's memory."""
        found: npt.NDArray[Any] = self._file.array(self.name)[places]
        # Columns of a matrix lie on all of its pages.
        self._file.took(max([found.nbytes, *map(mul, found.shape, found.strides)]))
        return found if found.flags.aligned else found.copy()

    def _read(self, start: int | None, stop: int | None, transposed: bool) -> npt.NDArray[Any]:
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"{self.name} must be stored as F32, F16 or BF16, got {self.dtype} in {self.file}; "
                "save the model in one of these dtypes"
            )
        if start is None:
            return self.stored()
        rows = slice(start, stop)
        if not transposed:
            return self.stored(rows)
        # Transposed out of the caches: straight from the file each number would be of another page.
        outputs: npt.NDArray[Any] = np.ascontiguousarray(self.stored(slice(None), rows)).T
        return outputs
