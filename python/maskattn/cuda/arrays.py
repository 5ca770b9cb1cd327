"""Masks as arrays of a device."""

from __future__ import annotations

from typing import Any

from maskattn.cuda.module import compiled
from maskattn.cuda.places import Place, named_place, place_of
from maskattn.cuda.plans import plan_of
from maskattn.masks.arrays import Geometry
from maskattn.masks.base import Mask


def plan(
    mask: Mask,
    q_len: int,
    kv_len: int,
    *,
    batch: int = 1,
    heads: int = 1,
    q_offset: Any = None,
    kv_lengths: Any = None,
    device: str = "cuda",
    like: Any = None,
) -> compiled.Plan:
    """:meth:`Mask.plan` on a device, for any number of calls and layers there; made by kernels, not waited for.

    Args:
        q_len, kv_len, batch, heads: as there.
        q_offset, kv_lengths: as there, or int32 or int64 arrays of the device.
        device: where, on the default stream.
        like: instead of ``device`` an array of it: the plan is made on its library's current stream, where calls need
            not wait for it.
    """
    place = named_place(device) if like is None else place_of("like", like)
    return _plan(place, mask, (q_len, kv_len, batch, heads, q_offset, kv_lengths))


def filled(mask: Mask, dtype: str, shown: int, hidden: int, where: Geometry, out: Any, device: str | None) -> Any:
    """An array (batch, heads, q_len, kv_len) of the device, or ``out``, of one of two bit patterns."""
    place = _place(out, device)
    lowered = _plan(place, mask, where)
    ours = _output(place, (lowered.batch, lowered.heads, lowered.q_len, lowered.kv_len), dtype, out)
    with place.current():
        compiled.fill_from_plan(lowered, ours, shown, hidden)
    return ours if out is None else out


def bits(mask: Mask, where: Geometry, out: Any, device: str | None) -> Any:
    """An array (batch, heads, q_len, ceil(kv_len / 8)) of packed bits of the device, or ``out``."""
    place = _place(out, device)
    lowered = _plan(place, mask, where)
    ours = _output(place, (lowered.batch, lowered.heads, lowered.q_len, (lowered.kv_len + 7) // 8), "uint8", out)
    with place.current():
        compiled.bits_from_plan(lowered, ours)
    return ours if out is None else out


def _place(out: Any, device: str | None) -> Place:
    return named_place("cuda" if device is None else device) if out is None else place_of("out", out)


def _plan(place: Place, mask: Mask, where: Geometry) -> compiled.Plan:
    q_len, kv_len, batch, heads, q_offset, kv_lengths = where
    expr = mask.expr  # its parameters may fix extents
    batch, heads = (own if given == 1 else given for given, own in ((batch, expr.batch), (heads, expr.heads)))
    with place.current():
        return plan_of(place, mask, q_len, kv_len, batch, heads, q_offset, kv_lengths)


def _output(place: Place, shape: tuple[int, ...], dtype: str, out: Any) -> compiled.Array:
    """A new array of ours, or ``out`` as one if it fits."""
    if out is None:
        with place.current():
            return compiled.empty(shape, dtype, place.stream)
    with place.current():
        ours = place.borrow("out", out)
    if ours.dtype != dtype:
        raise TypeError(f"out must be a {dtype} array, got {ours.dtype}")
    if ours.shape != shape or not ours.contiguous or ours.read_only:
        raise ValueError(f"out must be a writeable C-contiguous array of shape {shape}, got shape {ours.shape}")
    return ours
