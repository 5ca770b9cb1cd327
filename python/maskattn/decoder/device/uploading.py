"""Weights on the device, once each."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskattn._core import PackedWeight
from maskattn.cuda.module import compiled

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_LARGEST_HALF = 65504.0
#: Numbers that are unpacked and copied at once.
_PIECE = 1 << 24


class Uploads:
    """Copies of a model's arrays on a device: matrices in its dtype, all others in float32.

    What is asked for twice (a table that is the head's too) is copied once; so the host's must live as long as this.
    """

    def __init__(self, device: compiled.DecoderDevice, dtype: str) -> None:
        self.device, self.dtype = device, DTYPES[dtype]
        self._known: dict[int, tuple[object, Any]] = {}

    def __call__(self, described: Any) -> Any:
        """A description (see ``core_layers``) with the device's arrays in place of the host's."""
        if isinstance(described, tuple):
            return tuple(self(part) for part in described)
        if not isinstance(described, PackedWeight | np.ndarray):
            return described
        if id(described) not in self._known:
            copy = self._matrix(described) if isinstance(described, PackedWeight) else self.floats(described)
            self._known[id(described)] = described, copy
        return self._known[id(described)][1]

    def floats(self, array: npt.NDArray[Any]) -> compiled.DeviceArray:
        """As float32."""
        return on_device(self.device, np.ascontiguousarray(array, np.float32))

    def _matrix(self, weight: PackedWeight) -> compiled.DeviceArray:
        outputs, inputs = weight.shape
        made = compiled.DeviceArray(self.device, [outputs, inputs], self.dtype)
        piece = max(_PIECE // inputs, 1)
        for first in range(0, outputs, piece):
            rows = weight.rows(np.arange(first, min(first + piece, outputs)))
            if self.dtype == np.float16 and np.abs(rows).max(initial=0) > _LARGEST_HALF:
                raise ValueError(
                    f"weights must be at most {_LARGEST_HALF} in float16, got {np.abs(rows).max()}; load as bfloat16"
                )
            made.write(first * inputs, rows.astype(self.dtype))
        return made


def on_device(device: compiled.DecoderDevice, array: npt.NDArray[Any]) -> compiled.DeviceArray:
    """A copy of the same shape and dtype."""
    made = compiled.DeviceArray(device, list(array.shape), array.dtype)
    if array.size:
        made.write(0, np.ascontiguousarray(array))
    return made
