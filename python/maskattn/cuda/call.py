"""``attention`` on a device: arguments as people give them, to what the module takes."""

from __future__ import annotations

from typing import Any

from maskattn import _core
from maskattn.cuda.keys import keys_of
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Kind, NumPy, Place, kind_of, named_place, place_of
from maskattn.cuda.plans import plan_of
from maskattn.cuda.terms import GivenTerms
from maskattn.interop import borrow
from maskattn.interop import like as as_kind


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
        q, k, v: of one dtype, float32, float16 or bfloat16, and head dims from 1 to 256; ``lse`` is float32. A layer of
            a cache is one of the device.
        mask: also a bool array of the device, or a plan of :func:`maskattn.cuda.plan`.
        sinks: also a float32 array of the device.
        kv_lengths, q_offset: also int32 or int64 arrays of the device, which the host does not look at: lengths are
            cut to what there is.
        strategy: keys stay where they are.
    """
    if strategy not in ("mask", "auto"):
        raise ValueError(f'strategy must be "mask" or "auto" on CUDA, where keys stay where they are, got {strategy!r}')
    on_host = not _core.is_cuda(q)
    place = named_place("cuda" if device is None else device) if on_host else place_of("q", q)
    take = _to_device if on_host else Place.borrow
    kind = NumPy(None) if on_host else result_kind(q, like)
    given = GivenTerms(bias, scale, softcap, sinks, precision)
    with place.current():
        q = take(place, "q", q)
        keys = keys_of(place, take, q, k, v, mask, kv_lengths)
        (batch, heads, q_len, head_dim), v_head_dim = q.shape, keys.v.shape[3]
        host_out = _host_out(out, (batch, heads, q_len, v_head_dim), q.dtype) if on_host and out is not None else None
        terms = given.on(place, head_dim, take)
        plan = plan_of(place, keys.mask, q_len, keys.kv_len, batch, heads, q_offset, keys.kv_lengths)
        results = Results(place, kind, (*q.shape[:3], v_head_dim), q.dtype, None if on_host else out)
        lse = results.floats(q.shape[:3]) if return_lse else None
        compiled.attention(q, keys.k, keys.v, results.out, lse, plan, *terms, keys.pages, None, place.stream)
        finished = results.finished()
    if host_out is not None:
        host_out[...] = finished[0]
        finished[0] = out
    if on_host and like is not None:
        finished = [as_kind(each, like) for each in finished]
    return tuple(finished) if return_lse else finished[0]


class Results:
    """The output of a call, and others beside it, as its LSE.

    Args:
        kind: whose arrays they are.
        shape, dtype: of the output.
        given: the caller's ``out``, or None for a new array.
    """

    def __init__(self, place: Place, kind: Kind, shape: tuple[int, ...], dtype: str, given: Any) -> None:
        self._place, self._kind, self._given = place, kind, given
        made = kind.empty(shape, dtype, place) if given is None else (given, place.borrow("out", given))
        self._theirs, self.out = [made[0]], made[1]

    def floats(self, shape: tuple[int, ...]) -> compiled.Array:
        """An array of ours for another result, float32."""
        theirs, ours = self._kind.empty(shape, "float32", self._place)
        self._theirs.append(theirs)
        return ours

    def finished(self) -> list[Any]:
        """As the caller gets them, when the work on them has been launched."""
        return [each if each is self._given else self._kind.finished(each) for each in self._theirs]


def result_kind(q: Any, like: Any) -> Kind:
    """Whose arrays the results are."""
    if isinstance(like, str):
        if like != "numpy":
            raise TypeError(f"like must be an array or 'numpy', got {like!r}; leave it out for arrays of q's library")
        return NumPy(None)
    return kind_of(q if like is None else like)


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
