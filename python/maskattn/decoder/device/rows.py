"""Rows of float32 that are left on the device until somebody looks at them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.cuda.module import compiled
from maskattn.decoder.arrays import FloatArray, IntArray


class DeviceRows:
    """Stands for an array (..., width), float32, whose rows are on the device; looked at, it becomes NumPy's.

    Choosing rows, as ``rows[sequences]`` or ``rows[:, None]``, moves nothing; all else that arrays can do is done by
    the copy that ``np.asarray`` makes.

    Args:
        array: the compiled module's, shape (n, width).
        places: shape (...): which row stands where; -1: zeros.
    """

    def __init__(self, array: compiled.DeviceArray, places: IntArray) -> None:
        self._array, self._places = array, places
        self._copy: FloatArray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self._places.shape, int(self._array.shape[1]))

    @property
    def ndim(self) -> int:
        return self._places.ndim + 1

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> Any:
        given = key if isinstance(key, tuple) else (key,)
        axes = sum(1 if part is not None and part is not Ellipsis else 0 for part in given)
        whole_rows = axes <= self._places.ndim and not any(
            part is Ellipsis or (isinstance(part, np.ndarray) and part.ndim > 1 and part.dtype == np.bool_)
            for part in given
        )
        if not whole_rows:
            return np.asarray(self)[key]
        chosen = self._places[key]
        return np.asarray(self)[key] if np.ndim(chosen) == 0 else DeviceRows(self._array, chosen)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self._copy is None:
            width = int(self._array.shape[1])
            self._copy = self.compact().numpy().reshape(*self._places.shape, width)
        made = self._copy if dtype is None else self._copy.astype(dtype, copy=False)
        return made.copy() if copy else made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def compact(self) -> compiled.DeviceArray:
        """The compiled module's array of these rows, in their order."""
        places = self._places.reshape(-1)
        if len(places) == self._array.shape[0] and (places == np.arange(len(places))).all():
            return self._array
        return self._array.gathered(places)
