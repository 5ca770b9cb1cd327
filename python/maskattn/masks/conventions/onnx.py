from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.masks.base import BoolArray, Lengths, Mask
from maskattn.masks.conventions.additive import keep_of
from maskattn.masks.conventions.arrays import Array, as_array, both, is_floating, lengths, must_be_mask, rows_band
from maskattn.masks.conventions.flash import bound
from maskattn.masks.dense import Dense
from maskattn.masks.padding import Padding
from maskattn.masks.parameters import count, counts_per_sequence, per_sequence


def from_onnx(
    attn_mask: Array | None = None,
    is_causal: int = 0,
    *,
    q_len: int,
    kv_len: int,
    past_len: int = 0,
    nonpad_kv_seqlen: Array | None = None,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> Mask:
    """True = keep, or floats with 0 = keep and -inf = ignore; windows count the keys besides the query's own, -1: all.

    The mask arguments of ONNX Attention, opset 23 to 25. ``is_causal`` and windows are aligned by the cache: row ``i``
    stands at ``past_len + i``, or ``nonpad_kv_seqlen[b] - q_len + i``, or at ``i`` ("top-left") where there is no
    cache. A key must pass all that is given.

    Args:
        attn_mask: broadcastable to (batch, heads, q_len, kv_len); keys past its last axis are hidden (so a last axis
            of 1 is the first key alone, not all keys). Rank 3 is (heads, q_len, kv_len).
        q_len, kv_len: of the call; ``kv_len`` includes the past.
        past_len: length of ``past_key``.
        nonpad_kv_seqlen: integers (batch,); keys at or past them are padding.

    Returns:
        A mask for calls with these lengths and the default ``q_offset`` and ``kv_lengths``.
    """
    q_len, kv_len = lengths("ONNX masks", q_len, kv_len)
    left, right = bound("left_window_size", left_window_size), bound("right_window_size", right_window_size)
    if is_causal:
        right = 0 if right is None else min(right, 0)
    past = np.array([count("past_len", past_len)])
    terms: list[Mask] = []
    if nonpad_kv_seqlen is not None:
        if past_len:
            raise ValueError(f"past_len must be 0 with nonpad_kv_seqlen, as in ONNX, got {past_len}")
        real = counts_per_sequence("nonpad_kv_seqlen", as_array("nonpad_kv_seqlen", nonpad_kv_seqlen))
        terms.append(Padding(real))
        past = per_sequence(real) - q_len
    if left is not None or right is not None:
        terms.append(_band(left, right, q_len, kv_len, past))
    if attn_mask is not None:
        terms.append(Dense(_keep(as_array("attn_mask", attn_mask), kv_len)))
    return both(terms)


def _band(left: int | None, right: int | None, q_len: int, kv_len: int, past: npt.NDArray[np.int64]) -> Mask:
    if (past == past[0]).all():
        return rows_band(left, right, q_len, kv_len, int(past[0]))
    # Sequences that stand at different offsets: no window in positions says that of one call, so its rows do.
    ahead = np.arange(kv_len) - (np.arange(q_len)[:, None] + past[:, None, None])
    keep = np.ones(ahead.shape, np.bool_)
    keep &= True if left is None else ahead >= -left
    keep &= True if right is None else ahead <= right
    return Dense(keep[:, None])


def _keep(array: Array, kv_len: int) -> BoolArray:
    if array.dtype != np.bool_ and not is_floating(array):
        raise TypeError(
            f"attn_mask must be bool (True = keep) or float (0 = keep, -inf = ignore), got {array.dtype}; "
            "pass attn_mask.astype(bool) if 1 = keep"
        )
    if not 1 <= array.ndim <= 4 or array.shape[-1] > kv_len:
        raise ValueError(
            f"attn_mask must broadcast to (batch, heads, q_len, kv_len={kv_len}), its last axis may be shorter, "
            f"got shape {array.shape}"
        )
    keep = array if array.dtype == np.bool_ else keep_of("attn_mask", array, stacklevel=4)
    return np.pad(keep, [(0, 0)] * (keep.ndim - 1) + [(0, kv_len - keep.shape[-1])])


def to_onnx(
    mask: Mask,
    q_len: int,
    kv_len: int,
    dtype: npt.DTypeLike = np.bool_,
    *,
    batch: int = 1,
    heads: int = 1,
    q_offset: Lengths = None,
    kv_lengths: Lengths = None,
) -> npt.NDArray[Any]:
    """True = keep; or 0 = keep and -inf = ignore where dtype is floating: attn_mask of ONNX Attention, full width.

    Shape (batch, heads, q_len, kv_len), 1 where the mask does not depend on batch or head. For ``is_causal=0`` and no
    windows. A row that sees no key gives zeros there as here. Arguments as in :meth:`Mask.to_bool`.
    """
    must_be_mask(mask)
    if np.dtype(dtype) == np.bool_:
        return mask.to_bool(q_len, kv_len, batch=batch, heads=heads, q_offset=q_offset, kv_lengths=kv_lengths)
    return mask.to_additive(q_len, kv_len, dtype, batch=batch, heads=heads, q_offset=q_offset, kv_lengths=kv_lengths)
