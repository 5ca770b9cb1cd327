"""Keys and values as int8 with a scale per token and head, and how far that may be from the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Half a step of rounding, and 2**-15 of a step for the float32 arithmetic around it (two quotients and a product).
HALF_STEP = 0.5 + 2.0**-15

_TINY = np.finfo(np.float32).tiny


def quantize(name: str, x: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """``x`` (..., dim) as int8, and scales (...): ``x`` is within ``HALF_STEP * scale`` of ``int8 * scale``.

    Symmetric: scale = max(abs(x)) / 127 over the last axis; a row of zeros has scale 0.

    Raises:
        ValueError: ``x`` is not finite in float32.
    """
    held = (x != 0).any(axis=-1)  # before float64 numbers become zeros of float32, from which they differ
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which is refused below
        x = x.astype(np.float32, copy=False)
    largest = np.abs(x).max(axis=-1)
    if not np.isfinite(largest).all():
        raise ValueError(f"{name} must be finite in float32 to be stored as int8, got inf or nan; store it as floats")
    # A subnormal scale has too few bits to keep the quotient within 127.
    scales = np.where(held, np.maximum(largest / np.float32(127), _TINY), np.float32(0))
    divisors = np.where(held, scales, np.float32(1))
    return np.rint(x / divisors[..., None]).astype(np.int8), scales


def dequantize(x: npt.NDArray[Any], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The float32 numbers that int8 (..., dim) and scales (...) stand for."""
    values: npt.NDArray[np.float32] = x.astype(np.float32) * scales[..., None]
    return values
