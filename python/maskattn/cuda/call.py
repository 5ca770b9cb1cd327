"""``attention`` on a device: arguments as people give them, to what the module takes."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np

from maskattn import _core
from maskattn.arguments import modifiers_of, precision_level
from maskattn.bias import DistanceBias
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Kind, NumPy, Place, kind_of, named_place, place_of
from maskattn.cuda.plans import plan_of
from maskattn.interop import borrow
from maskattn.interop import like as as_kind
from maskattn.runtime import get_precision

_Lowered = tuple["compiled.Array | None", "compiled.Array | None"]
#: Tables and slopes of biases by distance, by device and stream.
_biases: weakref.WeakKeyDictionary[DistanceBias, dict[Any, _Lowered]] = weakref.WeakKeyDictionary()


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Any = None,
    kv_lengths: Any = None,
    q_offset: Any = None,
    precision: str | None = None,
    return_lse: bool = False,
    out: Any = None,
    like: Any = None,
    strategy: str = "mask",
    device: str | None = None,
) -> Any:
    """:func:`maskattn.attention` of arrays of a device, or of NumPy's moved there; what differs of its arguments:

    Args:
        q, k, v: of one dtype, float32, float16 or bfloat16, and head dims from 1 to 256; ``lse`` is float32.
        mask: also a bool array of the device, or a plan of :func:`maskattn.cuda.plan`.
        sinks: also a float32 array of the device.
        kv_lengths, q_offset: also int32 or int64 arrays of the device, which the host does not look at: lengths are
            cut to what there is.
        strategy: keys stay where they are.
    """
    if strategy not in ("mask", "auto"):
        raise ValueError(f'strategy must be "mask" or "auto" on CUDA, where keys stay where they are, got {strategy!r}')
    if v is None or hasattr(k, "k_pool"):
        raise TypeError(f"k and v must be arrays on CUDA, got {type(k).__name__}, whose keys are in the CPU's memory")
    on_host = not _core.is_cuda(q)
    place = named_place("cuda" if device is None else device) if on_host else place_of("q", q)
    take = _to_device if on_host else Place.borrow
    kind = NumPy(None) if on_host else _kind(q, like)
    modifiers = modifiers_of(bias, softcap, None if _core.is_cuda(sinks) else sinks, None)
    level = precision_level(get_precision() if precision is None else precision)
    with place.current():
        q, k, v = (take(place, name, array) for name, array in (("q", q), ("k", k), ("v", v)))
        compiled.check_arrays(q, k, v)
        (batch, heads, q_len, head_dim), v_head_dim = q.shape, v.shape[3]
        host_out = _host_out(out, (batch, heads, q_len, v_head_dim), q.dtype) if on_host and out is not None else None
        softcap, host_sinks, *_ = modifiers or (0.0, None)
        modified = (
            None if bias is None or isinstance(bias, DistanceBias) else take(place, "bias", bias),
            _scale(scale, head_dim),
            softcap,
            place.borrow("sinks", sinks) if _core.is_cuda(sinks) else _floats(place, host_sinks),
            *_by_distance(place, bias),
            level,
        )
        plan = plan_of(place, mask, q_len, k.shape[2], batch, heads, q_offset, kv_lengths)
        results = _results(place, kind, q, v_head_dim, None if on_host else out, return_lse)
        (_, ours), (_, our_lse) = results
        compiled.attention(q, k, v, ours, our_lse, plan, *modified, None, place.stream)
        finished = [theirs if theirs is None or theirs is out else kind.finished(theirs) for theirs, _ in results]
    if host_out is not None:
        host_out[...] = finished[0]
        finished[0] = out
    if on_host and like is not None:
        finished = [None if each is None else as_kind(each, like) for each in finished]
    return tuple(finished) if return_lse else finished[0]


def _kind(q: Any, like: Any) -> Kind:
    """Whose arrays the results are."""
    if isinstance(like, str):
        if like != "numpy":
            raise TypeError(f"like must be an array or 'numpy', got {like!r}; leave it out for arrays of q's library")
        return NumPy(None)
    return kind_of(q if like is None else like)


def _results(place: Place, kind: Kind, q: compiled.Array, v_head_dim: int, out: Any, return_lse: bool) -> list[Any]:
    """(what the caller gets, our view of it) of the output and the LSE, which is (None, None) if not asked for."""
    shape = (*q.shape[:3], v_head_dim)
    output = kind.empty(shape, q.dtype, place) if out is None else (out, place.borrow("out", out))
    return [output, kind.empty(shape[:3], "float32", place) if return_lse else (None, None)]


def _to_device(place: Place, name: str, array: Any) -> compiled.Array:
    host = borrow(name, array)
    if host.dtype.name not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"{name} must be float32, float16 or bfloat16 on CUDA, got {host.dtype}; convert it first")
    return place.to_device(host)


def _host_out(out: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """``out`` as an array of the host, checked."""
    array = borrow("out", out)
    if array.dtype.name != dtype:
        raise TypeError(f"out must have the dtype of q, {dtype}, got {array.dtype}")
    if array.shape != shape or not array.flags.writeable:
        raise ValueError(f"out must be a writeable array of shape {shape}, got shape {array.shape}")
    return array


def _scale(scale: Any, head_dim: int) -> float:
    if scale is None:
        return 1 / math.sqrt(head_dim)
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
