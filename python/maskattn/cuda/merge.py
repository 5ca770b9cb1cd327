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
        ours = [place.borrow(name, array) for name, array in given]
        compiled.check_states(*ours)
        kinds = [kind_of(array) for array in arrays[:2]]  # out_a's for out, lse_a's for lse
        made = [kind.empty(like.shape, like.dtype, place) for kind, like in zip(kinds, ours[:2], strict=True)]
        compiled.merge_states(*ours, *(each for _, each in made), place.stream)
        out, lse = (kind.finished(theirs) for kind, (theirs, _) in zip(kinds, made, strict=True))
    return out, lse
