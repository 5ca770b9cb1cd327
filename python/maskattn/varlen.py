"""Deleting padding instead of masking it: packed sequences, and the way there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.arguments import BoolArray, FloatArray, Lengths, Precision, borrowed, modifiers_of
from maskattn.attention import returned
from maskattn.bias import DistanceBias
from maskattn.masks.base import Mask

IntArray = npt.NDArray[np.int64]


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_q: npt.ArrayLike,
    cu_kv: npt.ArrayLike,
    *,
    mask: Mask | _core.MaskPlan | None = None,
    bias: DistanceBias | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: npt.ArrayLike | None = None,
    q_offset: Lengths = None,
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
        mask: speaks of positions inside each sequence; its geometry has as many sequences, and the longest q_len and
            kv_len. None: every query sees the keys of its sequence.
        bias: :class:`~maskattn.ALiBi` or :class:`~maskattn.RelativeBias`; positions are those inside each sequence.
        scale, softcap, sinks, precision, like, threads: as in :func:`~maskattn.attention`.
        q_offset: position of a sequence's first query; default: its last query sees its last key.
        return_lse: also return the logarithms, shape (query tokens, q_heads).
        out: written and returned; shape (query tokens, q_heads, v_head_dim).

    Returns:
        Array (query tokens, q_heads, v_head_dim), dtype of ``q``; with ``return_lse`` a pair.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing is written then.
    """
    q, k, v, into = borrowed("q", q), borrowed("k", k), borrowed("v", v), borrowed("out", out)
    for name, array in (("q", q), ("k", k), ("v", v)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}; pass np.asarray({name})")
        if array.ndim != 3:
            raise ValueError(f"{name} must have shape (tokens, heads, dim), got {array.shape}")
    q_ends, kv_ends = _cumulative("cu_q", cu_q, len(q)), _cumulative("cu_kv", cu_kv, len(k))
    if len(q_ends) != len(kv_ends):
        raise ValueError(f"cu_kv must have as many sequences as cu_q, {len(q_ends) - 1}, got {len(kv_ends) - 1}")
    plan = mask if isinstance(mask, _core.MaskPlan) else _plan(mask, np.diff(q_ends), np.diff(kv_ends), q, q_offset)
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


def _cumulative(name: str, value: npt.ArrayLike, tokens: int) -> IntArray:
    ends = np.asarray(value)
    if ends.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {ends.dtype}")
    if ends.ndim != 1 or len(ends) == 0 or ends[0] != 0 or (ends[1:] < ends[:-1]).any() or ends[-1] != tokens:
        raise ValueError(
            f"{name} must start at 0, not decrease and end at the number of tokens, {tokens}, got {ends.tolist()}"
        )
    return ends.astype(np.int64)


def _plan(
    mask: Mask | None, q_lengths: IntArray, kv_lengths: IntArray, q: FloatArray, q_offset: Lengths
) -> _core.MaskPlan | None:
    if mask is None:
        return None
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
