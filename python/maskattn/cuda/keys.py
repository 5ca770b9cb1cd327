"""Keys and values of a call on a device: arrays, or a layer of a cache that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from maskattn import _core
from maskattn.arguments import check_held, expr_of, held_alone, layer_of
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Place


class Keys(NamedTuple):
    """Arrays of ours; of a layer ``pages``, and ``mask`` sees no key that a ring has lost."""

    k: compiled.Array
    v: compiled.Array
    pages: tuple[compiled.Array, compiled.Array | None, compiled.Array | None] | None
    kv_len: int
    mask: Any
    kv_lengths: Any


def keys_of(
    place: Place,
    take: Callable[[Place, str, Any], compiled.Array],
    q: compiled.Array,
    k: Any,
    v: Any,
    mask: Any,
    lengths: Any,
) -> Keys:
    """What a call reads, checked together with its queries ``q``, an array of ours.

    Args:
        take: makes a caller's array one of ours.
        v: None where ``k`` is a layer; ``k`` itself where values do not matter.
    """
    layer = layer_of(k, v, lengths)
    if layer is None:
        if v is None:
            raise TypeError(
                f"v must be an array where k is no layer of a cache, got k of type {type(k).__name__} alone"
            )
        keys = take(place, "k", k)
        values = keys if v is k else take(place, "v", v)
        compiled.check_arrays(q, keys, values, None)
        return Keys(keys, values, None, keys.shape[2], mask, lengths)
    if not isinstance(layer.k_pool, compiled.Array):
        raise TypeError(
            f"k must be a cache's layer on the device, as q is, got a {type(layer).__name__} in the CPU's memory; make "
            f'the cache with device="cuda"'
        )
    keys, values = (place.borrow("k", pool) for pool in (layer.k_pool, layer.v_pool))
    pages = layer.device_pages(place)
    compiled.check_arrays(q, keys, values, pages)
    if layer.begins.any():
        mask = _without_lost(place, mask, layer)
    shortest, longest = layer.extremes
    lengths = longest if shortest >= longest else layer.lengths
    if isinstance(mask, compiled.Plan):  # has its own
        lengths = None
    return Keys(keys, values, pages, layer.kv_len, mask, lengths)


def _without_lost(place: Place, mask: Any, layer: Any) -> Any:
    if isinstance(mask, _core.MaskPlan):
        check_held(mask, layer, None)
        return mask
    if isinstance(mask, compiled.Plan) or _core.is_cuda(mask):
        raise ValueError(
            f"mask must be one of the host where the cache has lost keys, those before {layer.begins.tolist()}, got "
            f"{type(mask).__name__}, which may see some of them; pass a Mask, or make the cache with a larger window"
        )
    return held_alone(expr_of(mask), layer)
