"""Masks as arrays, of NumPy's or of a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.masks.base import Mask

#: q_len, kv_len, batch, heads, q_offset, kv_lengths.
Geometry = tuple[int, int, int, int, Any, Any]


def filled(
    mask: Mask, dtype: np.dtype[Any], shown: float, hidden: float, where: Geometry, out: Any, device: str | None
) -> npt.NDArray[Any]:
    """An array (batch, heads, q_len, kv_len) of one of two values, or ``out``."""
    shown, hidden = (int(np.array(value).astype(dtype).view(f"u{dtype.itemsize}")) for value in (shown, hidden))
    if device is not None or _core.is_cuda(out):
        from maskattn.cuda import arrays

        on_device: npt.NDArray[Any] = arrays.filled(mask, dtype.name, shown, hidden, where, out, device)
        return on_device
    plan = _plan(mask, where)
    array = _output((plan.batch, plan.heads, plan.q_len, plan.kv_len), dtype, out)
    _core.fill_from_plan(plan, array, shown, hidden, None)
    return array


def bits(mask: Mask, where: Geometry, out: Any, device: str | None) -> npt.NDArray[np.uint8]:
    """An array (batch, heads, q_len, ceil(kv_len / 8)) of packed bits, or ``out``."""
    if device is not None or _core.is_cuda(out):
        from maskattn.cuda import arrays

        on_device: npt.NDArray[np.uint8] = arrays.bits(mask, where, out, device)
        return on_device
    plan = _plan(mask, where)
    array = _output((plan.batch, plan.heads, plan.q_len, (plan.kv_len + 7) // 8), np.dtype(np.uint8), out)
    _core.bits_from_plan(plan, array, None)
    return array


def _plan(mask: Mask, where: Geometry) -> _core.MaskPlan:
    q_len, kv_len, batch, heads, q_offset, kv_lengths = where
    return mask.plan(q_len, kv_len, batch=batch, heads=heads, q_offset=q_offset, kv_lengths=kv_lengths)


def _output(shape: tuple[int, ...], dtype: np.dtype[Any], out: Any) -> npt.NDArray[Any]:
    """A new array, or ``out`` if it fits."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype:
        raise TypeError(f"out must be a {dtype} array, got {getattr(out, 'dtype', type(out).__name__)}")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writeable C-contiguous array of shape {shape}, got shape {out.shape}")
    return out
