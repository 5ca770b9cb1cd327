"""Checks that the masks' constructors share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = Sequence[int] | npt.NDArray[np.integer[Any]]

_LARGEST = 2**31 - 1


def count(name: str, value: object, *, also: str = "") -> int:
    """``value`` as an integer from 0 to 2**31 - 1."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        wanted = " ".join(filter(None, ("an integer", also)))
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}") from None
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"{name} must be from 0 to 2**31 - 1, got {number}")
    return number


def size(name: str, value: object) -> int:
    """``value`` as an integer from 1 to 2**31 - 1."""
    number = count(name, value)
    if number == 0:
        raise ValueError(f"{name} must be at least 1, got 0")
    return number


def counts(name: str, value: object) -> tuple[int, ...]:
    """A tuple of counts, from any one-dimensional sequence of integers."""
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{name} must be a sequence of integers, got {array.dtype} of shape {array.shape}")
    return tuple(count(name, int(each)) for each in array)


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def sequences_of_bool(name: str, value: object) -> npt.NDArray[np.bool_]:
    """A bool array (batch, length) from one of that shape or (length,)."""
    array = np.asarray(value)
    if array.dtype != np.bool_:
        raise TypeError(f"{name} must be a bool array (True = attend), got {array.dtype}; pass {name}.astype(bool)")
    if array.ndim not in (1, 2) or (array.ndim == 2 and len(array) == 0):
        raise ValueError(f"{name} must have shape (batch, length) or (length,), got {array.shape}")
    return np.atleast_2d(array)


def known_length(mask: str, kv_length: npt.NDArray[np.int64] | int | None) -> npt.NDArray[np.int64] | int:
    """``kv_length``, which a mask that counts from the end needs."""
    if kv_length is None:
        raise ValueError(
            f"kv_length must be given, {mask} counts from the last key; pass the number of keys that exist"
        )
    return kv_length


def counts_per_sequence(name: str, value: object) -> int | tuple[int, ...]:
    """One count, or a tuple of one per sequence."""
    if np.ndim(value) == 0:  # type: ignore[arg-type]
        return count(name, value.item() if isinstance(value, np.ndarray) else value)
    array = np.asarray(value)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be one integer or one per sequence, shape (batch,), got {array.dtype} of shape {array.shape}"
        )
    return tuple(count(name, int(each)) for each in array)


def per_sequence(values: int | tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Array (1,) or (batch,)."""
    return np.atleast_1d(np.asarray(values, np.int64))


def read_only(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A copy that nobody can change: masks are immutable."""
    array = array.copy()
    array.flags.writeable = False
    return array
