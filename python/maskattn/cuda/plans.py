"""Masks on a device: programs and small plans are kept with the mask, so that they are made once."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from maskattn import _core
from maskattn.arguments import is_cuda
from maskattn.cuda.places import Place
from maskattn.masks.base import Mask
from maskattn.masks.dense import four_axes
from maskattn.masks.full import Full

#: Plans that are kept with a mask: so many, of up to so many bytes each.
_KEPT_PLANS, _KEPT_BYTES = 4, 32 << 20


class _Kept:
    """What a mask has on devices, by device and stream: freed in the order of that stream when the mask is."""

    def __init__(self) -> None:
        self.programs: dict[Any, Any] = {}
        self.plans: dict[Any, Any] = {}


_kept: weakref.WeakKeyDictionary[Any, _Kept] = weakref.WeakKeyDictionary()


def plan_of(
    place: Place, mask: Any, q_len: int, kv_len: int, batch: int, heads: int, q_offset: Any, kv_lengths: Any
) -> Any:
    """A plan on the device, for a call of these extents.

    Args:
        mask: a Mask, a plan of the host or of the device, a bool array of either, or None.
        q_offset, kv_lengths: as in ``attention``, or int32 or int64 arrays of the device, of shape (batch,), which
            nobody checks: lengths are cut to what there is.
    """
    if isinstance(mask, place.cuda.Plan):
        if q_offset is not None or kv_lengths is not None:
            raise ValueError("q_offset and kv_lengths must be left out where mask is a plan of the device")
        return mask
    if isinstance(mask, _core.MaskPlan):
        if is_cuda(q_offset) or is_cuda(kv_lengths) or not mask.agrees(kv_lengths, q_offset):
            raise ValueError(
                f"kv_lengths and q_offset must be those that the plan was made with, got {kv_lengths} and {q_offset}; "
                "leave them out, or pass the mask itself"
            )
        where = mask.q_offset, mask.kv_lengths
        return _lowered(place, mask.expr, mask.q_len, mask.kv_len, mask.batch, mask.heads, *where, mask.row_base)
    on_device = [
        _integers(place, name, given, batch) for name, given in (("q_offset", q_offset), ("kv_lengths", kv_lengths))
    ]
    expr = (Full() if mask is None else mask).expr if mask is None or isinstance(mask, Mask) else None
    bools = place.borrow("mask", mask) if is_cuda(mask) else None
    if expr is None and bools is None:
        if not isinstance(mask, np.ndarray):
            raise TypeError(
                f"mask must be a Mask, a MaskPlan or a bool array (True = attend), got {type(mask).__name__}; "
                "see maskattn.masks"
            )
        expr = _core.mask_dense(four_axes(mask))
    given = [None if array is not None else g for array, g in zip(on_device, (q_offset, kv_lengths), strict=True)]
    checked = _core.check_geometry(Full().expr if expr is None else expr, q_len, kv_len, batch, heads, *given)
    offsets: Any = checked[0] if on_device == [None, None] or q_offset is not None else None  # None: by the lengths
    positions = [host if array is None else array for array, host in zip(on_device, (offsets, checked[1]), strict=True)]
    if bools is not None:
        return _of_bools(place, bools, q_len, kv_len, batch, heads, *positions)
    if on_device == [None, None]:
        return _lowered(place, expr, q_len, kv_len, batch, heads, *positions, 0)
    program = _program(place, expr)
    if program is None:
        raise ValueError(
            "q_offset and kv_lengths must be on the host where a function decides the mask, which is asked there"
        )
    return _make(place, program, q_len, kv_len, (batch, heads), (batch, min(expr.heads, heads)), *positions, 0)


def _integers(place: Place, name: str, given: Any, batch: int) -> Any:
    """An array of the device, or None for what the host has."""
    if not is_cuda(given):
        return None
    array = place.borrow(name, given)
    if array.shape not in ((batch,), (1,), ()):
        raise ValueError(f"{name} must be one integer or have shape (batch,) = ({batch},), got shape {array.shape}")
    return array


def _lowered(
    place: Place,
    expr: Any,
    q_len: int,
    kv_len: int,
    batch: int,
    heads: int,
    q_offset: Any,
    kv_lengths: Any,
    row_base: int,
) -> Any:
    """The plan of an expression at positions that the host knows; kept where it is small."""
    where = tuple(q_offset), tuple(kv_lengths)
    key = (place.device, place.stream, q_len, kv_len, batch, heads, where, row_base)
    kept = _kept.setdefault(expr, _Kept())
    plan = kept.plans.get(key)
    if plan is not None:
        return plan
    program = _program(place, expr)
    positions = [np.asarray(each, np.int64) for each in where]
    if program is None:
        plan = _by_the_host(place, expr, q_len, kv_len, batch, heads, where, positions, row_base)
    else:
        agree = expr.batch == 1 and all(len(set(each)) == 1 for each in where)
        if not agree:
            positions = [np.broadcast_to(each, (batch,)).copy() for each in positions]
        stored = (min(1, batch) if agree else batch), min(expr.heads, heads)
        if agree:
            positions = [each[:1] for each in positions]
        plan = _make(place, program, q_len, kv_len, (batch, heads), stored, *positions, row_base)
    if plan.nbytes <= _KEPT_BYTES and not place.cuda.is_capturing(place.stream):
        while len(kept.plans) >= _KEPT_PLANS:
            kept.plans.pop(next(iter(kept.plans)))
        kept.plans[key] = plan
    return plan


def _program(place: Place, expr: Any) -> Any:
    """The expression's program on the device, or None for what has none."""
    kept = _kept.setdefault(expr, _Kept())
    key = place.device, place.stream
    if key not in kept.programs:
        flat = _core.mask_program(expr)
        program = None if flat is None else place.cuda.make_program(*flat, place.stream)
        if place.cuda.is_capturing(place.stream):
            return program
        kept.programs[key] = program
    return kept.programs[key]


def _make(
    place: Place,
    source: Any,
    q_len: int,
    kv_len: int,
    extents: Any,
    stored: Any,
    q_offset: Any,
    kv_lengths: Any,
    row_base: int,
) -> Any:
    positions = [each if each is None or isinstance(each, place.cuda.Array) else np.asarray(each, np.int64)
                 for each in (q_offset, kv_lengths)]  # fmt: skip
    return place.cuda.make_plan(source, extents, q_len, kv_len, stored, *positions, row_base, place.stream)


def _of_bools(
    place: Place, keep: Any, q_len: int, kv_len: int, batch: int, heads: int, q_offset: Any, kv_lengths: Any
) -> Any:
    shape = (1,) * (4 - keep.ndim) + keep.shape
    full = (batch, heads, q_len, kv_len)
    if keep.ndim > 4 or any(n not in (1, want) for n, want in zip(shape, full, strict=True)):
        raise ValueError(f"mask must broadcast to (batch, heads, q_len, kv_len) = {full}, got shape {keep.shape}")
    program = place.cuda.program_of_bools(keep, place.stream)
    one = shape[0] == 1 and not any(
        isinstance(p, place.cuda.Array) or p is None or len(set(p)) > 1 for p in (q_offset, kv_lengths)
    )
    if one:
        q_offset, kv_lengths = ([p[0]] for p in (q_offset, kv_lengths))
    elif not any(isinstance(p, place.cuda.Array) for p in (q_offset, kv_lengths)):
        q_offset, kv_lengths = (np.broadcast_to(p, (batch,)).copy() for p in (q_offset, kv_lengths))
    stored = (min(1, batch) if one else batch), min(shape[1], heads)
    return _make(place, program, q_len, kv_len, (batch, heads), stored, q_offset, kv_lengths, 0)


def _by_the_host(
    place: Place, expr: Any, q_len: int, kv_len: int, batch: int, heads: int, where: Any, positions: Any, row_base: int
) -> Any:
    """The bits of what only the host can evaluate."""
    rows = row_base + q_len
    offsets = [offset - row_base for offset in where[0]]
    plan = _core.make_plan(expr, rows, kv_len, batch, heads, _scalar(offsets), _scalar(where[1]), None)
    stored = plan.stored
    if stored != (batch, heads):  # fewer bits; answers of functions are kept
        count = min(stored[0], batch)
        plan = _core.make_plan(expr, rows, kv_len, *stored, _scalar(offsets[:count]), _scalar(where[1][:count]), None)
    plan = plan[row_base:]
    words = -(-kv_len // 64)
    bits = np.zeros((*stored, q_len, words * 8), np.uint8)
    packed = np.empty((*stored, q_len, -(-kv_len // 8)), np.uint8)
    _core.bits_from_plan(plan, packed, None)
    bits[..., : packed.shape[-1]] = packed
    return _make(place, bits.view(np.uint64), q_len, kv_len, (batch, heads), stored, *positions, row_base)


def _scalar(values: Any) -> Any:
    """One integer where there is one: it serves any number of sequences."""
    return values[0] if len(values) == 1 else list(values)
