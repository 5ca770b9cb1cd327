from __future__ import annotations

import warnings

import numpy as np

from maskattn.masks.base import BoolArray, Lengths, Mask
from maskattn.masks.conventions.additive import keep_of
from maskattn.masks.conventions.arrays import Array, as_array, both, is_floating, must_be_mask, rank
from maskattn.masks.dense import Dense
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.parameters import count


def from_torch_mha(
    attn_mask: Array | None = None, key_padding_mask: Array | None = None, *, num_heads: int | None = None
) -> Mask:
    """True = IGNORE (the opposite of SDPA), or floats with 0 = keep and -inf = ignore; no window.

    The mask arguments of ``torch.nn.MultiheadAttention`` and ``torch.nn.Transformer``. Its ``is_causal`` is a
    promise that ``attn_mask`` is the causal mask, and adds nothing to it.

    Args:
        attn_mask: shape (q_len, kv_len) or (batch * num_heads, q_len, kv_len).
        key_padding_mask: shape (batch, kv_len) or (kv_len,). A key must pass both.
        num_heads: of the module; needed where ``attn_mask`` has rank 3.
    """
    terms: list[Mask] = []
    if attn_mask is not None:
        array = _checked("attn_mask", attn_mask)
        rank("attn_mask", array, {2: "(q_len, kv_len)", 3: "(batch * num_heads, q_len, kv_len)"})
        if array.ndim == 3:
            heads = _heads_of(array, num_heads)
            array = array.reshape(len(array) // heads, heads, *array.shape[1:])
        terms.append(Dense(~array if array.dtype == np.bool_ else keep_of("attn_mask", array)))
    if key_padding_mask is not None:
        array = _checked("key_padding_mask", key_padding_mask)
        rank("key_padding_mask", array, {1: "(kv_len,)", 2: "(batch, kv_len)"})
        terms.append(KeyPadding(~array if array.dtype == np.bool_ else keep_of("key_padding_mask", array)))
    return both(terms)


def _checked(name: str, value: object) -> Array:
    array = as_array(name, value)
    if array.dtype != np.bool_ and not is_floating(array):
        raise TypeError(
            f"{name} must be bool (True = ignore) or float (0 = keep, -inf = ignore), got {array.dtype}; "
            f"pass {name}.astype(bool) if 1 = ignore, {name} == 0 if 1 = keep"
        )
    return array


def _heads_of(array: Array, num_heads: int | None) -> int:
    if num_heads is None:
        raise TypeError(
            "num_heads must be given where attn_mask has shape (batch * num_heads, q_len, kv_len), got None"
        )
    heads = count("num_heads", num_heads)
    if heads == 0 or len(array) == 0 or len(array) % heads:
        raise ValueError(f"num_heads must divide the first axis of attn_mask, {len(array)}, got {heads}")
    return heads


def to_torch_mha(
    mask: Mask,
    q_len: int,
    kv_len: int,
    *,
    num_heads: int,
    batch: int = 1,
    q_offset: Lengths = None,
    kv_lengths: Lengths = None,
) -> BoolArray:
    """True = IGNORE (the opposite of SDPA): a bool array (q_len, kv_len), or (batch * num_heads, q_len, kv_len).

    For ``nn.MultiheadAttention(attn_mask=torch.from_numpy(...))``; the short form where the mask is the same for
    every sequence and head. Warns of rows that see no key: they are NaN there, and zeros here.

    Args:
        num_heads: of the module. batch: of the call, where the mask does not fix it. Others as in
            :meth:`Mask.to_ignore`.
    """
    must_be_mask(mask)
    num_heads = count("num_heads", num_heads)
    same = max(mask.expr.batch, batch, mask.expr.heads, *(np.asarray(x).size for x in (q_offset, kv_lengths))) == 1
    ignore = mask.to_ignore(
        q_len, kv_len, batch=batch, heads=1 if same else num_heads, q_offset=q_offset, kv_lengths=kv_lengths
    )
    empty = int(ignore.all(axis=-1).sum())
    if empty:
        warnings.warn(
            f"mask hides every key from {empty} rows: nn.MultiheadAttention gives NaN for them, or zeros, depending on "
            "need_weights and grad mode; overwrite those rows of its output",
            UserWarning,
            stacklevel=2,
        )
    return ignore[0, 0] if same else ignore.reshape(len(ignore) * num_heads, q_len, kv_len)
