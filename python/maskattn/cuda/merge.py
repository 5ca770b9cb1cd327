"""``merge_states`` of arrays of a device."""

from __future__ import annotations

from typing import Any

from maskattn import _core
from maskattn.cuda.module import compiled
from maskattn.cuda.places import kind_of, place_of

_NAMES = ("out_a", "lse_a", "out_b", "lse_b")


def merge_states(*arrays: Any) -> tuple[Any, Any]:
    """:func:`maskattn.merge_states` on a device, of arrays of which one at least is there; summed in float32."""
    given = list(zip(_NAMES, arrays, strict=True))
    place = place_of(*next((name, array) for name, array in given if _core.is_cuda(array)))
    with place.current():
        out_a, lse_a, out_b, lse_b = (place.borrow(name, array) for name, array in given)
        compiled.check_states(out_a, lse_a, out_b, lse_b)
        kinds = [kind_of(array) for array in arrays[:2]]  # out_a's for out, lse_a's for lse
        out, lse = (kind.empty(a.shape, a.dtype, place) for kind, a in zip(kinds, (out_a, lse_a), strict=True))
        compiled.merge_states(out_a, lse_a, out_b, lse_b, out[1], lse[1], place.stream)
        return kinds[0].finished(out[0]), kinds[1].finished(lse[0])
