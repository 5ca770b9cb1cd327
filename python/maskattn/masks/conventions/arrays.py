"""What the importers and exporters share: checks of their arguments, and the two alignments in terms of positions."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.masks.base import BoolArray, Mask
from maskattn.masks.full import Full
from maskattn.masks.parameters import count
from maskattn.masks.sliding_window import SlidingWindow

Array = npt.NDArray[Any]


def as_array(name: str, value: object) -> Array:
    """A NumPy array, or one from what offers ``__array__`` (a torch tensor on the CPU), without a copy."""
    if not isinstance(value, np.ndarray) and not hasattr(value, "__array__"):
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}; pass np.asarray({name})")
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError) as error:  # torch: on a device, or of a type that NumPy lacks
        raise TypeError(
            f"{name} must be convertible to a NumPy array, got {type(value).__name__}: {error}; "
            f"pass it detached, on the CPU, and in float32 if it is bfloat16"
        ) from error


def is_floating(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def flags(name: str, array: Array, one_means: str) -> BoolArray:
    """A bool array from bools, or from numbers that are all 0 or 1."""
    if array.dtype == np.bool_:
        return array
    if (array.dtype.kind not in "iu" and not is_floating(array)) or not np.isin(array, (0, 1)).all():
        remedy = (
            "pass additive arrays (0 and -inf) to masks.from_additive" if is_floating(array) else "pass a bool array"
        )
        raise ValueError(
            f"{name} must hold 0 and 1 only (1 = {one_means}), got {array.dtype} with other values; {remedy}"
        )
    return array.astype(np.bool_)


def rank(name: str, array: Array, shapes: dict[int, str]) -> None:
    """Whether the array has one of these ranks, each said as a shape."""
    if array.ndim not in shapes:
        raise ValueError(f"{name} must have shape {' or '.join(shapes.values())}, got {array.shape}")


def lengths(why: str, q_len: object, kv_len: object) -> tuple[int, int]:
    """q_len and kv_len, which an importer needs where its source counts rows from the first key."""
    for name, value in (("q_len", q_len), ("kv_len", kv_len)):
        if value is None:
            raise TypeError(f"{name} must be given with {why}, got None; pass the lengths of the call")
    return count("q_len", q_len), count("kv_len", kv_len)


def both(terms: list[Mask]) -> Mask:
    """What all of the terms allow."""
    return functools.reduce(operator.and_, terms) if terms else Full()


def rows_band(left: int | None, right: int | None, q_len: int, kv_len: int, first_row: int = 0) -> Mask:
    """Row ``i`` sees the keys from ``first_row + i - left`` to ``first_row + i + right``; None is unbounded.

    A mask speaks of positions, and by default the last query stands at the last key, so row ``i`` at ``i + kv_len -
    q_len``: the band is shifted by the difference, and is right for calls with that difference only.
    """
    shift = kv_len - q_len - first_row
    terms = []
    if left is not None:  # key - query >= -(left + shift)
        back = left + shift
        terms.append(SlidingWindow(left=back) if back >= 0 else ~SlidingWindow(right=-back - 1))
    if right is not None:  # key - query <= right - shift
        ahead = right - shift
        terms.append(SlidingWindow(right=ahead) if ahead >= 0 else ~SlidingWindow(left=-ahead - 1))
    return both(terms)


def must_be_mask(mask: object) -> None:
    if not isinstance(mask, Mask):
        raise TypeError(
            f"mask must be a Mask, got {type(mask).__name__}; wrap a bool array (True = keep) in masks.Dense"
        )
