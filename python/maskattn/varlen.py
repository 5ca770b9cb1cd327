"""Deleting padding instead of masking it: packed sequences, and the way there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.arguments import BoolArray, FloatArray, Lengths, Precision, borrowed, modifiers_of
from maskattn.attention import returned
from maskattn.bias import DistanceBias
from maskattn.masks.base import Mask
from maskattn.masks.parameters import count

if TYPE_CHECKING:
    from maskattn.interop import SupportsDLPack

IntArray = npt.NDArray[np.int64]


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_q: npt.ArrayLike | SupportsDLPack,
    cu_kv: npt.ArrayLike | SupportsDLPack,
    *,
    mask: Mask | _core.MaskPlan | None = None,
    bias: DistanceBias | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: npt.ArrayLike | None = None,
    q_offset: Lengths = None,
    max_q_len: int | None = None,
    max_kv_len: int | None = None,
    precision: Precision | None = None,
    return_lse: bool = False,
    out: Any = None,
    like: Any = None,
    threads: int | None = None,
) -> Any:
    """Attention of sequences packed one behind the other: padding is deleted, not masked.

    The result of a sequence has the bits of :func:`~maskattn.attention` on that sequence alone.

    Args:
        q: shape (query tokens, q_heads, head_dim), dtypes as in :func:`~maskattn.attention`; last axis contiguous.
        k: shape (key tokens, kv_heads, head_dim).
        v: shape (key tokens, kv_heads, v_head_dim).
        cu_q, cu_kv: cumulative lengths, shape (sequences + 1,): 0 first, then the end of each sequence.
        mask: speaks of positions inside each sequence; a plan's geometry has as many sequences with their lengths, and
            the longest q_len and kv_len. None: every query sees the keys of its sequence.
        bias: :class:`~maskattn.ALiBi` or :class:`~maskattn.RelativeBias`; positions are those inside each sequence.
        scale, softcap, sinks, precision, like, threads: as in :func:`~maskattn.attention`.
        q_offset: position of a sequence's first query; default: its last query sees its last key.
        max_q_len, max_kv_len: lengths that no sequence exceeds. The CPU needs neither. On CUDA, ``cu_q`` and ``cu_kv``
            may be int32 or int64 arrays of the device: with both of these, they are read when the kernels run and
            nobody checks them (sequences are cut to these lengths and to what there is); else the host waits for them.
        return_lse: also return the logarithms, shape (query tokens, q_heads).
        out: written and returned; shape (query tokens, q_heads, v_head_dim).

    Returns:
        Array (query tokens, q_heads, v_head_dim), dtype of ``q``; with ``return_lse`` a pair.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing is written then.
    """
    if _core.is_cuda(q):
        from maskattn.cuda.varlen import attention_varlen as on_device

        return on_device(
            q, k, v, cu_q, cu_kv, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, q_offset=q_offset,
            max_q_len=max_q_len, max_kv_len=max_kv_len, precision=precision, return_lse=return_lse, out=out, like=like,
        )  # fmt: skip
    q, k, v, into = borrowed("q", q), borrowed("k", k), borrowed("v", v), borrowed("out", out)
    for name, array in (("q", q), ("k", k), ("v", v)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}; pass np.asarray({name})")
        if array.ndim != 3:
            raise ValueError(f"{name} must have shape (tokens, heads, dim), got {array.shape}")
    q_ends, kv_ends = cumulative("cu_q", cu_q, len(q)), cumulative("cu_kv", cu_kv, len(k))
    check_count(len(q_ends), len(kv_ends))
    q_lengths, kv_lengths = np.diff(q_ends), np.diff(kv_ends)
    check_longest(q_lengths, kv_lengths, max_q_len, max_kv_len)
    plan = _plan(mask, q_lengths, kv_lengths, q, q_offset)
    if bias is not None and not isinstance(bias, DistanceBias):
        raise TypeError(f"bias must be ALiBi, RelativeBias or None, got {type(bias).__name__}")
    result = _core.attention(
        _four_axes(q), _four_axes(k), _four_axes(v), (q_ends.tolist(), kv_ends.tolist()), None, plan, None, scale, None,
        modifiers_of(bias, softcap, sinks, precision), return_lse, None if into is None else _four_axes(into), threads,
    )  # fmt: skip
    made, *lse = result if return_lse else (result,)
    packed = made[0].transpose(1, 0, 2) if into is None else into
    return returned((packed, *lse) if return_lse else packed, out, like)


def unpad(x: npt.NDArray[Any], keep: BoolArray) -> tuple[npt.NDArray[Any], IntArray]:
    """Delete padding: (batch, length, ...) and a bool array (batch, length), True = keep, to packed tokens.

    Returns:
        (tokens, ...) in the order of the sequences, and cumulative lengths (batch + 1,) for :func:`attention_varlen`.

    Raises:
        TypeError, ValueError: ``keep`` is not a bool array of the first two axes of ``x``.
    """
    _check_keep(keep, x.shape[:2])
    return x[keep], np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)


def repad(tokens: npt.NDArray[Any], keep: BoolArray, *, fill: float = 0) -> npt.NDArray[Any]:
    """Undo :func:`unpad`: packed tokens (tokens, ...) to (batch, length, ...), ``fill`` where there was padding.

    Raises:
        TypeError, ValueError: ``keep`` is not a bool array (batch, length) with as many True as there are tokens.
    """
    _check_keep(keep, keep.shape[:2])
    if int(keep.sum()) != len(tokens):
        raise ValueError(f"keep must mark as many tokens as there are, {len(tokens)}, got {int(keep.sum())}")
    x = np.full((*keep.shape, *tokens.shape[1:]), fill, tokens.dtype)
    x[keep] = tokens
    return x


def _four_axes(packed: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(tokens, heads, dim) as a view (1, heads, tokens, dim)."""
    if not isinstance(packed, np.ndarray) or packed.ndim != 3:
        raise ValueError(f"out must be an array (query tokens, q_heads, v_head_dim), got {np.shape(packed)}")
    view: npt.NDArray[Any] = packed.transpose(1, 0, 2)[None]
    return view


def cumulative(name: str, value: Any, tokens: int) -> IntArray:
    """Cumulative lengths of so many tokens, checked."""
    ends = np.asarray(value)
    if ends.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ends.dtype}")
    if ends.ndim != 1 or len(ends) == 0 or ends[0] != 0 or (ends[1:] < ends[:-1]).any() or ends[-1] != tokens:
        raise ValueError(
            f"{name} must start at 0, not decrease and end at the number of tokens, {tokens}, got {ends.tolist()}"
        )
    return ends.astype(np.int64)


def check_count(q_entries: int, kv_entries: int) -> None:
    """Entries of ``cu_q`` and of ``cu_kv`` must be as many."""
    if q_entries != kv_entries:
        raise ValueError(f"cu_kv must have as many sequences as cu_q, {q_entries - 1}, got {kv_entries - 1}")


def check_longest(q_lengths: IntArray, kv_lengths: IntArray, max_q_len: int | None, max_kv_len: int | None) -> None:
    """No sequence may be longer than is said."""
    for name, lengths, most in (("max_q_len", q_lengths, max_q_len), ("max_kv_len", kv_lengths, max_kv_len)):
        if most is not None and count(name, most) < (longest := int(lengths.max(initial=0))):
            raise ValueError(f"{name} must be at least {longest}, the length of a sequence, got {most}")


def check_plan(plan: _core.MaskPlan, kv_lengths: IntArray) -> None:
    """A plan must not see keys past the end of a sequence, where the next one's begin."""
    planned = np.array(plan.kv_lengths)
    if planned.size not in (1, kv_lengths.size) or (planned > kv_lengths).any():
        raise ValueError(
            f"mask must be planned for kv_lengths of the sequences, {kv_lengths.tolist()}, got a plan for "
            f"{planned.tolist()}; pass the mask itself"
        )


def _plan(
    mask: Mask | _core.MaskPlan | None, q_lengths: IntArray, kv_lengths: IntArray, q: FloatArray, q_offset: Lengths
) -> _core.MaskPlan | None:
    if mask is None:
        return None
    if isinstance(mask, _core.MaskPlan):
        check_plan(mask, kv_lengths)
        return mask
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a Mask, a MaskPlan or None, got {type(mask).__name__}; see maskattn.masks")
    offsets = kv_lengths - q_lengths if q_offset is None else q_offset
    q_len, kv_len = (int(lengths.max(initial=0)) for lengths in (q_lengths, kv_lengths))
    return _core.make_plan(mask.expr, q_len, kv_len, len(q_lengths), q.shape[1], offsets, kv_lengths, None)


def _check_keep(keep: BoolArray, shape: tuple[int, ...]) -> None:
    if not isinstance(keep, np.ndarray) or keep.dtype != np.bool_:
        raise TypeError(f"keep must be a bool array (True = keep), got {getattr(keep, 'dtype', type(keep).__name__)}")
    if keep.ndim != 2 or keep.shape != shape:
        raise ValueError(f"keep must have shape (batch, length) = {shape}, got {keep.shape}")
