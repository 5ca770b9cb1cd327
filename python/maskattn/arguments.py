"""What attention's functions share: arguments as people give them, to arguments as the core takes them."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.bias import DistanceBias
from maskattn.masks.base import Mask
from maskattn.masks.dense import four_axes
from maskattn.masks.full import Full

FloatArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Lengths = int | npt.NDArray[np.integer[Any]] | list[int] | tuple[int, ...] | None
MaskLike = Mask | _core.MaskPlan | BoolArray | None
BiasLike = FloatArray | DistanceBias | None
Precision = Literal["highest", "high", "medium"]

_PRECISIONS = ("highest", "high", "medium")


class Arguments(NamedTuple):
    """In the order in which the core's functions take them, between the arrays and ``threads``."""

    plan: _core.MaskPlan | None
    bias: FloatArray | None
    scale: float | None
    kv_lengths: Lengths
    modifiers: tuple[float, FloatArray | None, FloatArray | None, FloatArray | None] | None


def prepare(
    q: FloatArray,
    k: FloatArray,
    mask: MaskLike,
    bias: BiasLike,
    scale: float | None,
    softcap: float,
    sinks: npt.ArrayLike | None,
    kv_lengths: Lengths,
    q_offset: Lengths,
    precision: str,
    threads: int | None,
) -> Arguments:
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
    if not isinstance(q, np.ndarray) and hasattr(q, "__cuda_array_interface__"):
        raise NotImplementedError("q must be a NumPy array in this version, got a CUDA array; copy it to the host")
    table = slopes = None
    if isinstance(bias, DistanceBias):
        table, slopes = bias._lower()
        bias = None
    modifiers = None
    if softcap or sinks is not None or table is not None or slopes is not None:
        modifiers = (_softcap(softcap), None if sinks is None else _sinks(sinks), table, slopes)
    plan = None if mask is None and q_offset is None else _plan(mask, q, k, kv_lengths, q_offset, threads)
    return Arguments(plan, bias, scale, kv_lengths, modifiers)


def _softcap(softcap: float) -> float:
    if not isinstance(softcap, (int, float, np.floating, np.integer)):
        raise TypeError(f"softcap must be a number, got {type(softcap).__name__}")
    if not (0 <= softcap < math.inf):
        raise ValueError(f"softcap must be at least 0 (0: no cap) and finite, got {softcap}")
    return float(softcap)


def _sinks(sinks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(sinks)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"sinks must be an array of numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"sinks must have shape (q_heads,), got {array.shape}")
    logits = np.ascontiguousarray(array, np.float64)
    if not (logits < math.inf).all():
        raise ValueError("sinks must be finite, or -inf for none, got inf or NaN")
    return logits


def _plan(
    mask: MaskLike,
    q: FloatArray,
    k: FloatArray,
    kv_lengths: Lengths,
    q_offset: Lengths,
    threads: int | None,
) -> _core.MaskPlan | None:
    if isinstance(mask, _core.MaskPlan):
        if not mask.agrees(kv_lengths, q_offset):
            raise ValueError(
                f"kv_lengths and q_offset must be those that the plan was made with, got {kv_lengths} and {q_offset}; "
                "leave them out, or pass the mask itself"
            )
        return mask
    if not all(isinstance(a, np.ndarray) and a.ndim == 4 for a in (q, k)):
        return None  # the core says what is wrong with them
    if isinstance(mask, np.ndarray):
        expr = _core.mask_dense(four_axes(mask))
    elif mask is None or isinstance(mask, Mask):
        expr = (mask or Full()).expr
    else:
        raise TypeError(
            f"mask must be a Mask, a MaskPlan or a bool array (True = attend), got {type(mask).__name__}; "
            "see maskattn.masks"
        )
    batch, heads, q_len, _ = q.shape
    return _core.make_plan(expr, q_len, k.shape[2], batch, heads, q_offset, kv_lengths, threads)
