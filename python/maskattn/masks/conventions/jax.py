from __future__ import annotations

import numpy as np

from maskattn.masks.base import Mask
from maskattn.masks.conventions.arrays import Array, as_array, both, lengths, rows_band
from maskattn.masks.dense import Dense
from maskattn.masks.padding import Padding
from maskattn.masks.parameters import count, counts_per_sequence, per_sequence


def from_jax(
    mask: Array | None = None,
    *,
    is_causal: bool = False,
    local_window_size: int | tuple[int, int] | None = None,
    query_seq_lengths: Array | None = None,
    key_value_seq_lengths: Array | None = None,
    q_len: int | None = None,
    kv_len: int | None = None,
) -> Mask:
    """True = keep; local_window_size counts the keys besides the query's own; rows are counted from the first key.

    The mask arguments of ``jax.nn.dot_product_attention``; a key must pass all that are given. ``is_causal`` and
    windows are "top-left" (row ``i`` stands at key ``i``, also with ``key_value_seq_lengths``), so they need the
    lengths. A row that sees no key is the mean of all values in JAX, and zeros here.

    Args:
        mask: bool, broadcastable to (batch, heads, q_len, kv_len).
        local_window_size: (left, right), or one integer for both.
        query_seq_lengths, key_value_seq_lengths: integers (batch,); rows and keys at or past them are padding.
        q_len, kv_len: of the call; needed with ``is_causal``, a window, or ``query_seq_lengths``.

    Returns:
        A mask for calls with these lengths and the default ``q_offset`` and ``kv_lengths``.
    """
    terms: list[Mask] = []
    if is_causal:
        terms.append(rows_band(None, 0, *lengths("is_causal, which is top-left in JAX", q_len, kv_len)))
    if local_window_size is not None:
        left, right = _window(local_window_size)
        terms.append(rows_band(left, right, *lengths("local_window_size", q_len, kv_len)))
    if key_value_seq_lengths is not None:
        terms.append(
            Padding(
                counts_per_sequence("key_value_seq_lengths", as_array("key_value_seq_lengths", key_value_seq_lengths))
            )
        )
    if query_seq_lengths is not None:
        rows, _ = lengths("query_seq_lengths", q_len, kv_len)
        real = per_sequence(counts_per_sequence("query_seq_lengths", as_array("query_seq_lengths", query_seq_lengths)))
        terms.append(Dense((np.arange(rows) < real[:, None])[:, None, :, None]))
    if mask is not None:
        array = as_array("mask", mask)
        if array.dtype != np.bool_:
            raise TypeError(f"mask must be bool (True = keep), got {array.dtype}; JAX takes additive arrays as bias=")
        terms.append(Dense(array))
    return both(terms)


def _window(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"local_window_size must be an integer or a pair (left, right), got {size!r}")
    left, right = (count("local_window_size", side) for side in pair)
    return left, right
