"""``prepare`` for arrays of a device."""

from __future__ import annotations

from typing import Any

from maskattn import _core
from maskattn.cuda.call import Results
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Place, kind_of, place_of
from maskattn.cuda.plans import plan_of
from maskattn.cuda.terms import GivenTerms

_NAMES = "q", "k", "v"


class PreparedOnDevice:
    """:func:`maskattn.prepare`'s result for arrays of a device: the plan, and all that scores go through, are there,
    and a call launches attention on the caller's stream.

    Args:
        q, k, v: examples, arrays of the device.
        mask, q_offset, kv_lengths, return_lse: as there.
        terms: all other arguments.
    """

    def __init__(
        self, q: Any, k: Any, v: Any, mask: Any, q_offset: Any, kv_lengths: Any, terms: GivenTerms, return_lse: bool
    ) -> None:
        place = place_of("q", q)
        with place.current():
            q, k, v = (place.borrow(*each) for each in zip(_NAMES, (q, k, v), strict=True))
            compiled.check_arrays(q, k, v, None)
            self._wanted = [(each.dtype, each.shape) for each in (q, k, v)]
            self._extents = q.shape[2], k.shape[2], q.shape[0], q.shape[1]
            self._terms = terms.on(place, q.shape[3])
            self._plan = plan_of(place, mask, *self._extents, q_offset, kv_lengths)
            compiled.check_prepared(q, k, v, self._plan, *self._terms)
        self._lowered = mask is not None or q_offset is not None
        self._device, self._return_lse = place.device, return_lse

    def __call__(self, q: Any, k: Any, v: Any, *, out: Any = None, kv_lengths: Any = None) -> Any:
        place, kind = self._place(q), kind_of(q)
        with place.current():
            q, k, v = (self._array(place, *each) for each in zip(_NAMES, (q, k, v), self._wanted, strict=True))
            plan = self._plan_for(place, kv_lengths)
            for array in self._terms:
                if isinstance(array, compiled.Array):  # of the stream of the preparation, perhaps
                    place.borrow("bias", array)
            (dtype, shape), (_, values) = self._wanted[0], self._wanted[2]
            results = Results(place, kind, (*shape[:3], values[3]), dtype, out)
            lse = results.floats(shape[:3]) if self._return_lse else None
            compiled.attention(q, k, v, results.out, lse, plan, *self._terms, None, None, place.stream)
            finished = results.finished()
        return tuple(finished) if self._return_lse else finished[0]

    def __repr__(self) -> str:
        wanted = ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in zip(_NAMES, self._wanted, strict=True))
        return f"<maskattn call prepared for {wanted} on cuda:{self._device}>"

    def _place(self, q: Any) -> Place:
        if not _core.is_cuda(q):
            raise TypeError(
                f"q must be a CUDA array, as the call was prepared for, got {type(q).__name__}; move it to the device, "
                "or prepare another call"
            )
        place = place_of("q", q)
        if place.device != self._device:
            raise ValueError(
                f"q must be on cuda:{self._device}, as the call was prepared for, got an array on cuda:{place.device}; "
                "move it there, or prepare another call"
            )
        return place

    def _array(self, place: Place, name: str, given: Any, wanted: tuple[str, tuple[int, ...]]) -> compiled.Array:
        array = place.borrow(name, given)
        if (array.dtype, array.shape) == wanted:
            return array
        text = (
            f"{name} must be {wanted[0]} {wanted[1]}, as the call was prepared for, got {array.dtype} array of shape "
            f"{array.shape}; prepare another call"
        )
        raise ValueError(text) if array.dtype == wanted[0] else TypeError(text)

    def _plan_for(self, place: Place, kv_lengths: Any) -> compiled.Plan:
        if kv_lengths is None:
            return self._plan
        if self._lowered:
            raise ValueError(
                "kv_lengths must be left out where the call was prepared with a mask or q_offset, lowered for the "
                "lengths that it then had; prepare another call, or one without them"
            )
        return plan_of(place, None, *self._extents, None, kv_lengths)
