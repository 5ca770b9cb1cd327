"""The float64 oracle: attention by its definition, every matrix materialised. Slow, obvious, shared by all tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.bias import DistanceBias
from maskattn.masks import Mask


def visible(
    mask: Mask | None,
    q_len: int,
    kv_len: int,
    *,
    batch: int = 1,
    heads: int = 1,
    q_offset: Any = None,
    kv_lengths: Any = None,
) -> npt.NDArray[np.bool_]:
    """Bool array (batch, heads, q_len, kv_len) from the mask's own definition."""
    shape = (batch, heads, q_len, kv_len)
    lengths = np.broadcast_to(kv_len if kv_lengths is None else kv_lengths, (batch,)).reshape(-1, 1, 1, 1)
    offsets = lengths - q_len
    if q_offset is not None:
        offsets = np.broadcast_to(q_offset, (batch,)).reshape(-1, 1, 1, 1)
    b, h, i, keys = np.ogrid[:batch, :heads, :q_len, :kv_len]
    allowed = True if mask is None else mask.allows(b, h, offsets + i, keys, q_offset=offsets, kv_length=lengths)
    return np.array(np.broadcast_to(allowed & (keys < lengths), shape))


def distance_bias(
    bias: DistanceBias, q_len: int, kv_len: int, *, batch: int = 1, q_offset: Any = None, kv_lengths: Any = None
) -> npt.NDArray[np.float64]:
    """The matrix of a bias by distance, (batch, q_heads, q_len, kv_len)."""
    lengths = np.broadcast_to(kv_len if kv_lengths is None else kv_lengths, (batch,))
    offsets = np.broadcast_to(lengths - q_len if q_offset is None else q_offset, (batch,))
    positions = offsets[:, None, None] + np.arange(q_len)[:, None]
    return bias.values(positions, np.arange(kv_len)).swapaxes(0, 1)


def scores(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    *,
    bias: npt.NDArray[Any] | None = None,
    scale: float | None = None,
    softcap: float = 0,
) -> npt.NDArray[np.float64]:
    """scale * q.k, capped, (+ bias) of every pair, (batch, q_heads, q_len, kv_len)."""
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1).astype(np.float64)
    with np.errstate(all="ignore"):
        result = q.astype(np.float64) @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if softcap:
            result = softcap * np.tanh(result / softcap)
        return result if bias is None else result + bias.astype(np.float64)


#: Sets that multiply bfloat16 numbers on a matrix unit.
MATRIX_ISAS = ("avx512_bf16", "amx")


def rounding_of_weights(isa: str, weights: npt.NDArray[np.float64], *arrays: npt.NDArray[Any]) -> Any:
    """What rounding weights to bfloat16 may add to the error of an output: none, unless q, k and v are bfloat16."""
    if isa not in MATRIX_ISAS or any(array.dtype.name != "bfloat16" for array in arrays):
        return 0.0
    q, k, v = arrays
    with np.errstate(invalid="ignore"):
        size = np.abs(np.repeat(v, q.shape[1] // k.shape[1], axis=1).astype(np.float64))
        return 2.0**-9 * (weights @ np.where(np.isfinite(size), size, 0))


def attention(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    seen: npt.NDArray[np.bool_],
    *,
    bias: npt.NDArray[Any] | None = None,
    scale: float | None = None,
    softcap: float = 0,
    sinks: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(output, LSE, weights) in float64. Rows that see nothing: zeros, -inf, zeros. Unseen values do not count.

    A sink is one more logit of the softmax, whose weight is dropped.
    """
    v = np.repeat(v, q.shape[1] // k.shape[1], axis=1).astype(np.float64)
    with np.errstate(all="ignore"):
        logits = np.where(seen, scores(q, k, bias=bias, scale=scale, softcap=softcap), -np.inf)
        empty = np.isneginf(logits).all(axis=-1, keepdims=True)
        sink = np.full((1, q.shape[1], 1, 1), -np.inf) if sinks is None else sinks.astype(np.float64)[:, None, None]
        top = np.maximum(logits.max(axis=-1, keepdims=True, initial=-np.inf), sink)
        top = np.where(empty, -np.inf, top)
        weights = np.exp(logits - np.where(empty, 0, top))
        total = np.where(empty, 0, weights.sum(axis=-1, keepdims=True) + np.exp(sink - np.where(empty, 0, top)))
        lse = np.log(total[..., 0]) + top[..., 0]
        weights = np.where(total == 0, 0, weights / np.where(total == 0, 1, total))
    used = (weights > 0).any(axis=2)[..., None]  # a value that no query uses may be anything
    return weights @ np.where(used, v, 0), lse, weights
