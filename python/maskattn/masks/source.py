"""Python that rebuilds a mask: what ``repr`` prints for parameters, arrays among them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_SHORT = 300  # characters of an array that is printed as a plain list
_READABLE = 1000  # characters of a list that still reads better than packed bits


def call(name: str, parameters: Mapping[str, object]) -> str:
    """``name(parameter=..., ...)``."""
    return f"{name}({', '.join(f'{key}={source(value)}' for key, value in parameters.items())})"


def source(value: object) -> str:
    """Python for one parameter: numbers, text, tuples of them, arrays; a function by its name."""
    if isinstance(value, np.ndarray):
        array = value
        # Masks give a list two axes and a matrix four: those of extent 1 in front need not be said.
        while array.ndim > value.ndim // 2 and array.shape[0] == 1:
            array = array[0]
        return _array(array)
    return getattr(value, "__name__", None) or repr(value)


def _array(array: npt.NDArray[np.generic]) -> str:
    """Nested lists, with runs of equal elements where that is shorter; large noise as packed bits."""
    if array.size == 0:
        return f"np.zeros({array.shape}, {'bool' if array.dtype == np.bool_ else 'int'})"
    plain = str(array.tolist())
    if len(plain) <= _SHORT:
        return plain
    runs = _runs(array)
    if array.dtype != np.bool_ or len(runs) <= _READABLE:
        return runs
    packed = np.packbits(array.astype(np.bool_)).tobytes().hex()
    bits = f"np.frombuffer(bytes.fromhex('{packed}'), np.uint8)"
    return min(runs, f"np.unpackbits({bits}, count={array.size}).astype(bool).reshape({array.shape})", key=len)


def _runs(array: npt.NDArray[np.generic]) -> str:
    """``[[True, False], np.repeat([True, False], [7, 30])]``"""
    if array.ndim > 1:
        return f"[{', '.join(map(_runs, array))}]"
    begins = np.concatenate([[0], np.flatnonzero(array[1:] != array[:-1]) + 1])
    lengths = np.diff(np.append(begins, len(array)))
    return min(str(array.tolist()), f"np.repeat({array[begins].tolist()}, {lengths.tolist()})", key=len)
