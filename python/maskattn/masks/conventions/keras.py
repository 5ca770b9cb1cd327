from __future__ import annotations

import numpy as np

from maskattn.masks.base import BoolArray, Lengths, Mask
from maskattn.masks.conventions.arrays import Array, as_array, both, flags, lengths, must_be_mask, rank, rows_band
from maskattn.masks.dense import Dense
from maskattn.masks.key_padding import KeyPadding


def from_keras(
    mask: Array | None = None, use_causal_mask: bool = False, *, q_len: int | None = None, kv_len: int | None = None
) -> Mask:
    """True (1) = keep; use_causal_mask counts rows from the first key; no window.

    The masks of Keras layers: ``key_mask``, ``value_mask`` or ``Embedding(mask_zero=True).compute_mask(...)`` of rank
    2, ``attention_mask`` of rank 3 or 4. Keras casts any number to bool, so an additive mask would arrive inverted
    there; here it is an error.

    Args:
        mask: bool, or numbers 0 and 1; shape (batch, kv_len), (batch, q_len, kv_len) or (batch, heads, q_len, kv_len).
        use_causal_mask: "top-left", as in torch: row ``i`` sees the keys up to ``i``; needs ``q_len`` and ``kv_len``.

    Returns:
        With ``use_causal_mask``, a mask for calls with these lengths and the default ``q_offset`` and ``kv_lengths``.
    """
    terms: list[Mask] = []
    if use_causal_mask:
        terms.append(rows_band(None, 0, *lengths("use_causal_mask, which is top-left in Keras", q_len, kv_len)))
    if mask is not None:
        array = as_array("mask", mask)
        shapes = {2: "(batch, kv_len)", 3: "(batch, q_len, kv_len)", 4: "(batch, heads, q_len, kv_len)"}
        rank("mask", array, shapes)
        keep = flags("mask", array, "keep")
        terms.append(KeyPadding(keep) if keep.ndim == 2 else Dense(keep[:, None] if keep.ndim == 3 else keep))
    return both(terms)


def to_keras(
    mask: Mask,
    q_len: int,
    kv_len: int,
    *,
    batch: int = 1,
    q_offset: Lengths = None,
    kv_lengths: Lengths = None,
) -> BoolArray:
    """True = keep: a bool array (batch, q_len, kv_len), the attention_mask of a Keras layer.

    Raises:
        ValueError: the mask differs between heads, for which this shape has no axis.
    """
    must_be_mask(mask)
    if mask.expr.heads != 1:
        raise ValueError(
            f"mask must be the same for every head, got one of {mask.expr.heads} heads; "
            "pass mask.to_bool(...), whose rank 4 Keras broadcasts too"
        )
    keep = mask.to_bool(q_len, kv_len, batch=batch, q_offset=q_offset, kv_lengths=kv_lengths)
    return np.asarray(keep[:, 0])
