"""What scores go through on a device: scale, softcap, bias, sinks and precision as people give them, checked."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from maskattn import _core
from maskattn.arguments import modifiers_of, precision_level
from maskattn.bias import DistanceBias
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Place
from maskattn.runtime import get_precision

_Lowered = tuple["compiled.Array | None", "compiled.Array | None"]
_Take = Callable[[Place, str, Any], "compiled.Array"]
#: Tables and slopes of biases by distance, by device and stream.
_biases: weakref.WeakKeyDictionary[DistanceBias, dict[Any, _Lowered]] = weakref.WeakKeyDictionary()


class Terms(NamedTuple):
    """In the order in which the module's functions take them, behind the plan; arrays are ours."""

    bias: compiled.Array | None
    scale: float
    softcap: float
    sinks: compiled.Array | None
    table: compiled.Array | None
    slopes: compiled.Array | None
    precision: int


class GivenTerms:
    """The same before the arrays of a call are known; what is wrong without them, has been refused.

    Args:
        bias, scale, softcap, sinks, precision: as in :func:`maskattn.attention`, the arrays of the device, too.
    """

    def __init__(self, bias: Any, scale: Any, softcap: Any, sinks: Any, precision: Any) -> None:
        modifiers = modifiers_of(bias, softcap, None if _core.is_cuda(sinks) else sinks, None)
        self._softcap, host_sinks, *_ = modifiers or (0.0, None)
        self._sinks = sinks if _core.is_cuda(sinks) else host_sinks
        self._bias, self._scale = bias, _checked(scale)
        self._precision = precision_level(get_precision() if precision is None else precision)

    def on(self, place: Place, head_dim: int, take: _Take = Place.borrow) -> Terms:
        """On the place's device, for queries of so many numbers; ``take`` makes a bias an array of ours."""
        array = self._bias if self._bias is not None and not isinstance(self._bias, DistanceBias) else None
        sinks = self._sinks
        return Terms(
            None if array is None else take(place, "bias", array),
            1 / math.sqrt(head_dim) if self._scale is None else self._scale,
            self._softcap,
            place.borrow("sinks", sinks) if _core.is_cuda(sinks) else _floats(place, sinks),
            *_by_distance(place, self._bias),
            self._precision,
        )


def _checked(scale: Any) -> float | None:
    if scale is None:
        return None
    if not isinstance(scale, (int, float, np.floating, np.integer)):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)


def _floats(place: Place, array: Any) -> compiled.Array | None:
    return None if array is None else place.to_device(np.asarray(array, np.float32))


def _by_distance(place: Place, bias: Any) -> _Lowered:
    """(table, slopes) of a bias by distance, kept on the device."""
    if not isinstance(bias, DistanceBias):
        return None, None
    kept = _biases.setdefault(bias, {})
    key = (place.device, place.stream) if place.keeps() else None
    if key in kept:
        return kept[key]
    table, slopes = (_floats(place, each) for each in bias._lower())
    if key:
        kept[key] = table, slopes
    return table, slopes
