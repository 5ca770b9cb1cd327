"""Masks on a device: programs and small plans are kept with the mask, so that they are made once."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Place
from maskattn.masks.base import Mask
from maskattn.masks.dense import four_axes
from maskattn.masks.full import Full

#: Plans that are kept with a mask: so many, of up to so many bytes each.
_KEPT_PLANS, _KEPT_BYTES = 4, 32 << 20
_EVERY_KEY = Full()
#: What a plan is made of: a program, or bits of the host, (sequences, heads, q_len, words).
Source = Union["compiled.Program", npt.NDArray[np.uint64]]


@dataclass
class _Kept:
    """What a mask has on devices: freed, in the order of the stream that it was made on, when the mask is."""

    programs: dict[Any, compiled.Program | None] = field(default_factory=dict)
    plans: dict[Any, compiled.Plan] = field(default_factory=dict)


_kept: weakref.WeakKeyDictionary[_core.MaskExpr, _Kept] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Geometry:
    """Where a call stands. Positions are tuples of one or one per sequence, or arrays of the device; an offset that is
    None follows from lengths that the device has. ``q_lengths``: the rows of each sequence; None: all have q_len."""

    q_len: int
    kv_len: int
    batch: int
    heads: int
    q_offset: Any
    kv_lengths: Any
    row_base: int = 0
    q_lengths: Any = None

    def on_host(self) -> bool:
        rows = self.q_lengths is None or isinstance(self.q_lengths, tuple)
        return rows and isinstance(self.q_offset, tuple) and isinstance(self.kv_lengths, tuple)

    def sequences_agree(self) -> bool:
        positions = (self.q_offset, self.kv_lengths, self.q_lengths or (0,))
        return self.on_host() and all(len(set(each)) == 1 for each in positions)


def plan_of(
    place: Place,
    mask: Any,
    q_len: int,
    kv_len: int,
    batch: int,
    heads: int,
    q_offset: Any,
    kv_lengths: Any,
    q_lengths: tuple[int, ...] | compiled.Array | None = None,
) -> compiled.Plan:
    """A plan on the device, for a call of these extents.

    Args:
        mask: a Mask, a plan of the host or of the device, a bool array of either, or None.
        q_offset, kv_lengths: as in ``attention``, or int32 or int64 arrays of the device, of shape (batch,), which
            nobody checks: lengths are cut to what there is.
        q_lengths: a tuple, or an array of ours: how many rows each sequence has; rows that are none see nothing. Not
            asked for where ``mask`` is a plan.
    """
    if isinstance(mask, compiled.Plan):
        if q_offset is not None or kv_lengths is not None:
            raise ValueError("q_offset and kv_lengths must be left out where mask is a plan of the device")
        if mask.device != place.device:
            raise ValueError(f"mask must be planned on cuda:{place.device}, got a plan on cuda:{mask.device}")
        return mask
    if isinstance(mask, _core.MaskPlan):
        return _of_plan(place, mask, q_offset, kv_lengths)
    bools = place.borrow("mask", mask) if _core.is_cuda(mask) else None
    expr = _EVERY_KEY.expr if bools is not None else _expr(mask)
    given = [_integers(place, *each, batch) for each in (("q_offset", q_offset), ("kv_lengths", kv_lengths))]
    checked = _core.check_geometry(
        expr, q_len, kv_len, batch, heads, *(None if isinstance(each, compiled.Array) else each for each in given)
    )
    offset: Any
    offset, lengths = (g if isinstance(g, compiled.Array) else tuple(c) for g, c in zip(given, checked, strict=True))
    if isinstance(lengths, compiled.Array) and q_offset is None:
        offset = None
    geometry = Geometry(q_len, kv_len, batch, heads, offset, lengths, q_lengths=q_lengths)
    return _lowered(place, expr, geometry) if bools is None else _of_bools(place, bools, geometry)


def _expr(mask: Any) -> _core.MaskExpr:
    if isinstance(mask, _core.MaskExpr):
        return mask
    if mask is None or isinstance(mask, Mask):
        return (mask or _EVERY_KEY).expr
    if isinstance(mask, np.ndarray):
        return _core.mask_dense(four_axes(mask))
    raise TypeError(
        f"mask must be a Mask, a MaskPlan or a bool array (True = attend), got {type(mask).__name__}; "
        "see maskattn.masks"
    )


def _of_plan(place: Place, plan: _core.MaskPlan, q_offset: Any, kv_lengths: Any) -> compiled.Plan:
    """A plan of the host, made again: its rows need not cross over."""
    if _core.is_cuda(q_offset) or _core.is_cuda(kv_lengths) or not plan.agrees(kv_lengths, q_offset):
        raise ValueError(
            f"kv_lengths and q_offset must be those that the plan was made with, got {kv_lengths} and {q_offset}; "
            "leave them out, or pass the mask itself"
        )
    where = tuple(plan.q_offset), tuple(plan.kv_lengths)
    return _lowered(place, plan.expr, Geometry(plan.q_len, plan.kv_len, plan.batch, plan.heads, *where, plan.row_base))


def _integers(place: Place, name: str, given: Any, batch: int) -> Any:
    """An array of ours, or what the host has."""
    if not _core.is_cuda(given):
        return given
    array = place.borrow(name, given)
    if array.shape not in ((batch,), (1,), ()):
        raise ValueError(f"{name} must be one integer or have shape (batch,) = ({batch},), got shape {array.shape}")
    return array


def _lowered(place: Place, expr: _core.MaskExpr, geometry: Geometry) -> compiled.Plan:
    """The plan of an expression, kept where it is small and its positions are numbers."""
    kept = _kept.setdefault(expr, _Kept())
    key = (place.device, place.stream, geometry) if geometry.on_host() and place.keeps() else None
    if key in kept.plans:
        return kept.plans[key]
    program = _program(place, expr)
    if program is None:
        plan = _by_the_host(place, expr, geometry)
    else:
        agree = expr.batch == 1 and geometry.sequences_agree()
        stored = min(1 if agree else geometry.batch, geometry.batch), min(expr.heads, geometry.heads)
        plan = _make(place, program, geometry, stored)
    if key and plan.nbytes <= _KEPT_BYTES:
        while len(kept.plans) >= _KEPT_PLANS:
            kept.plans.pop(next(iter(kept.plans)))
        kept.plans[key] = plan
    return plan


def _program(place: Place, expr: _core.MaskExpr) -> compiled.Program | None:
    """The expression's program on the device, or None for what has none."""
    kept = _kept.setdefault(expr, _Kept())
    key = (place.device, place.stream) if place.keeps() else None
    if key in kept.programs:
        return kept.programs[key]
    flat = _core.mask_program(expr)
    program = None if flat is None else compiled.make_program(*flat, place.stream)
    if key:
        kept.programs[key] = program
    return program


def _make(place: Place, source: Source, geometry: Geometry, stored: tuple[int, int]) -> compiled.Plan:
    """From a program, or from bits of the host, for the sequences and heads that differ."""
    g = geometry
    q_offset, kv_lengths, q_lengths = (
        np.asarray(each[: max(1, stored[0])], np.int64) if isinstance(each, tuple) else each
        for each in (g.q_offset, g.kv_lengths, g.q_lengths)
    )
    return compiled.make_plan(
        source,
        (g.batch, g.heads),
        g.q_len,
        g.kv_len,
        stored,
        q_offset,
        kv_lengths,
        q_lengths,
        g.row_base,
        place.stream,
    )


def _of_bools(place: Place, keep: compiled.Array, geometry: Geometry) -> compiled.Plan:
    g = geometry
    shape, full = (1,) * (4 - keep.ndim) + keep.shape, (g.batch, g.heads, g.q_len, g.kv_len)
    if keep.ndim > 4 or any(n not in (1, want) for n, want in zip(shape, full, strict=True)):
        raise ValueError(f"mask must broadcast to (batch, heads, q_len, kv_len) = {full}, got shape {keep.shape}")
    one = shape[0] == 1 and g.sequences_agree()
    stored = min(1 if one else g.batch, g.batch), min(shape[1], g.heads)
    plan = _make(place, compiled.program_of_bools(keep, place.stream), geometry, stored)
    if keep.stream != place.stream and not compiled.is_capturing(place.stream):  # ours: what follows there waits
        compiled.wait_for(keep.stream, place.stream)
    return plan


def _by_the_host(place: Place, expr: _core.MaskExpr, geometry: Geometry) -> compiled.Plan:
    """The bits of what only the host can evaluate, a function."""
    g = geometry
    if not g.on_host():
        raise ValueError(
            "q_offset and kv_lengths (or cu_q and cu_kv) must be on the host where a function decides the mask: it is "
            "asked there"
        )

    def rows(batch: int, heads: int) -> _core.MaskPlan:
        offsets = [offset - g.row_base for offset in g.q_offset[:batch]]
        lengths = list(g.kv_lengths[:batch])
        q_offset, kv_lengths = (each[0] if len(each) == 1 else each for each in (offsets, lengths))
        plan = _core.make_plan(expr, g.row_base + g.q_len, g.kv_len, batch, heads, q_offset, kv_lengths, None)
        return plan[g.row_base :]

    plan = rows(g.batch, g.heads)
    stored = plan.stored
    if stored != (g.batch, g.heads):  # fewer bits; a function's answers are kept
        plan = rows(*stored)
    packed = np.empty((*stored, g.q_len, (g.kv_len + 7) // 8), np.uint8)
    _core.bits_from_plan(plan, packed, None)
    words = np.zeros((*stored, g.q_len, (g.kv_len + 63) // 64 * 8), np.uint8)
    words[..., : packed.shape[-1]] = packed
    return _make(place, words.view(np.uint64), g, stored)
