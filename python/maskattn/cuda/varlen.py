"""``attention_varlen`` of arrays of a device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from maskattn import _core
from maskattn.bias import DistanceBias
from maskattn.cuda.call import Results, result_kind
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Place, place_of, to_host
from maskattn.cuda.plans import plan_of
from maskattn.cuda.terms import GivenTerms
from maskattn.masks.base import Mask
from maskattn.masks.parameters import count
from maskattn.varlen import IntArray, check_count, check_longest, check_plan, cumulative

#: (name, cumulative lengths, number of tokens) of queries and of keys.
Ends = tuple[tuple[str, Any, int], tuple[str, Any, int]]
Most = tuple[int | None, int | None]


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_kv: Any,
    *,
    mask: Any,
    bias: Any,
    scale: float | None,
    softcap: float,
    sinks: Any,
    q_offset: Any,
    max_q_len: int | None,
    max_kv_len: int | None,
    precision: str | None,
    return_lse: bool,
    out: Any,
    like: Any,
) -> Any:
    """:func:`maskattn.attention_varlen` on a device."""
    place, kind = place_of("q", q), result_kind(q, like)
    if bias is not None and not isinstance(bias, DistanceBias):
        raise TypeError(f"bias must be ALiBi, RelativeBias or None, got {type(bias).__name__}")
    if mask is not None and not isinstance(mask, (Mask, _core.MaskPlan, compiled.Plan)):
        raise TypeError(f"mask must be a Mask, a MaskPlan or None, got {type(mask).__name__}; see maskattn.masks")
    given = GivenTerms(bias, scale, softcap, sinks, precision)
    with place.current():
        q, k, v = (place.borrow(name, array) for name, array in (("q", q), ("k", k), ("v", v)))
        compiled.check_packed(q, k, v)
        (tokens, heads, head_dim), v_head_dim = q.shape, v.shape[2]
        most = max_q_len, max_kv_len
        ends = (("cu_q", cu_q, tokens), ("cu_kv", cu_kv, k.shape[0]))
        known = _on_host(place, ends, most)
        sequences = _unknown(place, ends, mask, most) if known is None else _known(place, known, mask, most)
        terms = given.on(place, head_dim)
        plan = _plan(place, mask, sequences, heads, q_offset)
        results = Results(place, kind, (tokens, heads, v_head_dim), q.dtype, out)
        lse = results.floats((tokens, heads)) if return_lse else None
        compiled.attention(q, k, v, results.out, lse, plan, *terms, None, sequences.packing, place.stream)
        finished = results.finished()
    return tuple(finished) if return_lse else finished[0]


class _Sequences(NamedTuple):
    """Where they are in the packed arrays, and what masks need: NumPy arrays, or arrays of the device."""

    packing: compiled.Packing
    q_lengths: Any
    kv_lengths: Any


def _on_host(place: Place, ends: Ends, most: Most) -> list[IntArray] | None:
    """Both cumulative lengths, or None where one is the device's and nobody needs to know it."""
    on_device = any(_core.is_cuda(value) for _, value, _ in ends)
    if on_device and None not in most:
        return None
    if on_device and compiled.is_capturing(place.stream):
        raise ValueError(
            "max_q_len and max_kv_len must be given where cu_q or cu_kv is on the device and a graph is captured, got "
            f"{most[0]} and {most[1]}; the host cannot wait for the lengths there"
        )
    return [
        cumulative(name, to_host(_lent(place, name, value)) if _core.is_cuda(value) else value, tokens)
        for name, value, tokens in ends
    ]


def _lent(place: Place, name: str, value: Any) -> compiled.Array:
    """Cumulative lengths of the device as an array of ours, as far as the host can check them."""
    array = place.borrow(name, value)
    if array.dtype not in ("int32", "int64"):
        raise TypeError(f"{name} must be int32 or int64 on CUDA, got {array.dtype}")
    if array.ndim != 1 or array.size == 0 or not array.contiguous:
        raise ValueError(f"{name} must be contiguous and have shape (sequences + 1,), got shape {array.shape}")
    return array


def _known(place: Place, ends: list[IntArray], mask: Any, most: Most) -> _Sequences:
    q_ends, kv_ends = ends
    check_count(len(q_ends), len(kv_ends))
    q_lengths, kv_lengths = np.diff(q_ends), np.diff(kv_ends)
    check_longest(q_lengths, kv_lengths, *most)
    if isinstance(mask, _core.MaskPlan):
        check_plan(mask, kv_lengths)
    tokens = int(q_ends[-1]), int(kv_ends[-1])
    longest = int(q_lengths.max(initial=0)), int(kv_lengths.max(initial=0))
    packing = compiled.pack(q_ends, kv_ends, len(q_lengths), tokens, longest, place.stream)
    return _Sequences(packing, q_lengths, kv_lengths)


def _unknown(place: Place, ends: Ends, mask: Any, most: Most) -> _Sequences:
    if isinstance(mask, _core.MaskPlan):
        raise ValueError(
            "mask must be a Mask, or a plan of the device, where cu_q or cu_kv is on the device, got a MaskPlan, whose "
            "lengths nobody can compare with theirs; pass the mask itself"
        )
    q_ends, kv_ends = (
        _lent(place, name, value) if _core.is_cuda(value) else cumulative(name, value, tokens)
        for name, value, tokens in ends
    )
    check_count(q_ends.size, kv_ends.size)
    tokens = ends[0][2], ends[1][2]
    names = "max_q_len", "max_kv_len"
    q_len, kv_len = (min(count(name, each), there) for name, each, there in zip(names, most, tokens, strict=True))
    packing = compiled.pack(q_ends, kv_ends, q_ends.size - 1, tokens, (q_len, kv_len), place.stream)
    return _Sequences(packing, packing.q_lengths, packing.kv_lengths)


def _plan(place: Place, mask: Any, sequences: _Sequences, heads: int, q_offset: Any) -> compiled.Plan:
    packing, q_lengths, kv_lengths = sequences
    extents = packing.q_len, packing.kv_len, packing.count, heads
    if isinstance(mask, (_core.MaskPlan, compiled.Plan)):
        return plan_of(place, mask, *extents, q_offset, None)
    if isinstance(q_lengths, np.ndarray):
        q_offset = kv_lengths - q_lengths if q_offset is None else q_offset
        q_lengths = tuple(q_lengths.tolist()) if (q_lengths != packing.q_len).any() else None
    return plan_of(place, mask, *extents, q_offset, kv_lengths, q_lengths)
