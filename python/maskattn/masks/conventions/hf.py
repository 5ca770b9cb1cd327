from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.masks.base import BoolArray, Lengths, Mask
from maskattn.masks.causal import Causal
from maskattn.masks.conventions.additive import keep_of
from maskattn.masks.conventions.arrays import Array, as_array, both, flags, is_floating, must_be_mask, rank
from maskattn.masks.dense import Dense
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.parameters import count
from maskattn.masks.sliding_window import SlidingWindow

_LAYER_TYPES = ("full_attention", "sliding_attention")
_HIDDEN = ("min", "-inf")


def from_hf(
    attention_mask: Array | None = None,
    *,
    kv_len: int | None = None,
    layer_type: str | None = None,
    sliding_window: int | None = None,
    is_causal: bool = True,
) -> Mask:
    """1 (True) = keep, or floats with 0 = keep and finfo.min or -inf = ignore; a window counts the query itself.

    The ``attention_mask`` of Hugging Face transformers. One of rank 2 comes from a tokenizer and says padding only: a
    decoder adds what its layers add, which ``layer_type`` names as ``config.layer_types`` does. One of rank 4 is
    complete, as transformers takes it, and nothing is added to it.

    Args:
        attention_mask: rank 2, (batch, kv_len), 0 and 1 of any type; rank 4, broadcastable to (batch, heads, q_len,
            kv_len), bool or float. None: no padding.
        kv_len: keys past the end of a shorter mask of rank 2 are hidden, as with a StaticCache.
        layer_type: None (what the array says), "full_attention" or "sliding_attention".
        sliding_window: ``config.sliding_window``. A causal layer sees that many keys, the query's own among them; where
            ``is_causal`` is false, that many on each side besides its own.
        is_causal: of the layer; counts with ``layer_type``.
    """
    terms: list[Mask] = _layer(layer_type, sliding_window, is_causal)
    if attention_mask is not None:
        array = as_array("attention_mask", attention_mask)
        rank("attention_mask", array, {2: "(batch, kv_len)", 4: "(batch, heads, q_len, kv_len)"})
        if array.ndim == 2:
            terms.append(KeyPadding(_padded(flags("attention_mask", array, "keep"), kv_len)))
        elif layer_type is not None:
            raise ValueError(
                f"layer_type must be None with an attention_mask of rank 4, which is complete, got {layer_type!r}"
            )
        elif array.dtype == np.bool_:
            terms.append(Dense(array))
        elif is_floating(array):
            terms.append(Dense(keep_of("attention_mask", array)))
        else:
            raise TypeError(
                f"attention_mask of rank 4 must be bool (True = keep) or float (0 = keep), got {array.dtype}; "
                "pass attention_mask.astype(bool) if 1 = keep"
            )
    return both(terms)


def _layer(layer_type: str | None, sliding_window: int | None, is_causal: bool) -> list[Mask]:
    if layer_type is not None and layer_type not in _LAYER_TYPES:
        raise ValueError(f"layer_type must be None or one of {', '.join(_LAYER_TYPES)}, got {layer_type!r}")
    if (layer_type == "sliding_attention") != (sliding_window is not None):
        raise ValueError(
            f"sliding_window must be given with layer_type='sliding_attention' and only then, got {sliding_window} "
            f"with {layer_type!r}"
        )
    if layer_type is None:
        return []
    if sliding_window is None:
        return [Causal()] if is_causal else []
    window = count("sliding_window", sliding_window)
    if not is_causal:
        return [SlidingWindow(window, window)]
    if window == 0:
        raise ValueError("sliding_window must be at least 1 in a causal layer, the query itself, got 0")
    return [Causal(), SlidingWindow(left=window - 1)]


def _padded(keep: BoolArray, kv_len: int | None) -> BoolArray:
    if kv_len is None:
        return keep
    return np.pad(keep, ((0, 0), (0, max(0, count("kv_len", kv_len) - keep.shape[1]))))


def to_hf(
    mask: Mask,
    q_len: int,
    kv_len: int,
    dtype: npt.DTypeLike = np.float32,
    *,
    hidden: str = "min",
    batch: int = 1,
    heads: int = 1,
    q_offset: Lengths = None,
    kv_lengths: Lengths = None,
) -> npt.NDArray[Any]:
    """0 = keep, finfo.min (hidden="min") or -inf (hidden="-inf") = ignore; True = keep where dtype is bool.

    The ``attention_mask`` of rank 4 that transformers takes as it is: (batch, heads, q_len, kv_len), 1 where the mask
    does not depend on batch or head. ``np.bool_`` is for sdpa, a float type (also bfloat16) for eager attention. With
    "min" it warns of rows that see no key: there they attend to everything, here to nothing. Eager attention makes
    them NaN with "-inf".
    """
    must_be_mask(mask)
    if hidden not in _HIDDEN:
        raise ValueError(f"hidden must be one of {', '.join(_HIDDEN)}, got {hidden!r}")
    kind = np.dtype(dtype)
    where: dict[str, Any] = {"batch": batch, "heads": heads, "q_offset": q_offset, "kv_lengths": kv_lengths}
    if kind == np.bool_:
        return mask.to_bool(q_len, kv_len, **where)
    array = mask.to_additive(q_len, kv_len, kind, **where)
    if hidden == "min":
        ignore = np.isneginf(array)
        empty = int(ignore.all(axis=-1).sum())
        if empty:
            warnings.warn(
                f"mask hides every key from {empty} rows, and rows of finfo.min are not -inf: they attend to "
                "everything in transformers; overwrite those rows of its output, or pass dtype=bool for sdpa",
                UserWarning,
                stacklevel=2,
            )
        import ml_dtypes  # knows bfloat16; nothing else here needs it

        array[ignore] = ml_dtypes.finfo(kind).min  # type: ignore[no-untyped-call]
    return array
