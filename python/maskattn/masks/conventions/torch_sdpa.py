from __future__ import annotations

import numpy as np

from maskattn.masks.base import BoolArray, Lengths, Mask
from maskattn.masks.conventions.additive import keep_of
from maskattn.masks.conventions.arrays import Array, as_array, both, is_floating, lengths, must_be_mask, rows_band
from maskattn.masks.dense import Dense


def from_torch_sdpa(
    attn_mask: Array | None = None, is_causal: bool = False, *, q_len: int | None = None, kv_len: int | None = None
) -> Mask:
    """True = keep, or floats with 0 = keep and -inf = ignore; is_causal counts rows from the first key; no window.

    The mask arguments of ``torch.nn.functional.scaled_dot_product_attention``. Its ``is_causal`` is "top-left": row
    ``i`` sees the keys up to ``i`` whatever the lengths, so it needs them. Where they are equal it is Causal.

    Args:
        attn_mask: bool or float array of rank 2 or more, broadcastable to (batch, heads, q_len, kv_len).
        is_causal: with ``attn_mask``, a key must pass both.
        q_len, kv_len: of the call; needed with ``is_causal``.

    Returns:
        A mask for calls with these lengths and the default ``q_offset`` and ``kv_lengths``.
    """
    terms: list[Mask] = []
    if is_causal:
        terms.append(rows_band(None, 0, *lengths("is_causal, which is top-left in torch", q_len, kv_len)))
    if attn_mask is not None:
        array = as_array("attn_mask", attn_mask)
        if array.dtype != np.bool_ and not is_floating(array):
            raise TypeError(
                f"attn_mask must be bool (True = keep) or float (0 = keep, -inf = ignore), got {array.dtype}; "
                "pass attn_mask.astype(bool) if 1 = keep"
            )
        if not 2 <= array.ndim <= 4:
            raise ValueError(f"attn_mask must broadcast to (batch, heads, q_len, kv_len), got shape {array.shape}")
        terms.append(Dense(array if array.dtype == np.bool_ else keep_of("attn_mask", array)))
    return both(terms)


def to_torch_sdpa(
    mask: Mask,
    q_len: int,
    kv_len: int,
    *,
    batch: int = 1,
    heads: int = 1,
    q_offset: Lengths = None,
    kv_lengths: Lengths = None,
) -> BoolArray:
    """True = keep: a bool array (batch, heads, q_len, kv_len), 1 where the mask does not depend on batch or head.

    For ``scaled_dot_product_attention(attn_mask=torch.from_numpy(...))``, without ``is_causal``. A row that sees no
    key gives zeros there as here. Arguments as in :meth:`Mask.to_bool`.
    """
    must_be_mask(mask)
    return mask.to_bool(q_len, kv_len, batch=batch, heads=heads, q_offset=q_offset, kv_lengths=kv_lengths)
