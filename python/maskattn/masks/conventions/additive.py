from __future__ import annotations

import warnings

import numpy as np

from maskattn.masks.base import BoolArray, Mask
from maskattn.masks.conventions.arrays import Array, as_array, is_floating
from maskattn.masks.dense import Dense

# -1e4 is the least extreme number in use for "hidden"; in bfloat16 it is -9984.
HIDDEN_BELOW = -9000.0


def from_additive(array: Array) -> Mask:
    """0 = keep, -inf (or finfo.min, -1e9, -1e4: with a warning) = ignore; added to the scores; no window.

    Args:
        array: floats, broadcastable to (batch, heads, q_len, kv_len).

    Raises:
        TypeError: not floats. ValueError: other numbers than those: that is a bias, not a mask.
    """
    return Dense(keep_of("array", array))


def keep_of(name: str, value: object, stacklevel: int = 3) -> BoolArray:
    """Where an additive array keeps; to be called by a public function, at whose caller the warning points."""
    array = as_array(name, value)
    if not is_floating(array):
        raise TypeError(
            f"{name} must be floats (0 = keep, -inf = ignore), got {array.dtype}; a bool array with True = keep is a "
            "mask as it is (masks.Dense), one with True = ignore is for masks.Dense.from_ignore"
        )
    keep = np.asarray(array == 0, np.bool_)
    low = np.asarray(array <= HIDDEN_BELOW, np.bool_)  # -inf too; false for NaN
    if not (keep | low).all():
        raise ValueError(f"{name} must be 0 (keep) or -inf (ignore) everywhere, got {_others(array, keep | low)}")
    finite = low & ~np.isneginf(array)
    if finite.any():
        empty = int((low.all(axis=-1) & finite.any(axis=-1)).sum()) if array.ndim else 0
        warnings.warn(
            f"{name} hides keys with finite numbers (lowest {array.min()}), which are taken as hidden; but rows of "
            "finfo.min are not -inf: in the source library a row that hides every key attends to everything, here to "
            f"nothing. Such rows in {name}: {empty}",
            UserWarning,
            stacklevel=stacklevel,
        )
    return keep


def _others(array: Array, fine: BoolArray) -> str:
    others = array[~fine]
    if np.isin(array, (0, 1)).all():
        return "0 and 1: these are flags, which added to scores hide nothing; pass the array as bool"
    shown = ", ".join(str(number) for number in others[:3])
    if np.isnan(others).any() or np.isposinf(others).any():
        return f"{shown}: NaN and +inf make whole rows NaN; build the mask with np.where(keep, 0, -np.inf)"
    return f"{shown}: numbers that are added to scores are a bias; pass the array as bias= to attention"
