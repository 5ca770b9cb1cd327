"""Attention's weights on demand: the matrix at one of its stages, or only the part of it that is wanted."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.arguments import FloatArray, Lengths, MaskLike, Precision, prepare

if TYPE_CHECKING:
    from maskattn.bias import DistanceBias
    from maskattn.cache import Layer
    from maskattn.interop import SupportsDLPack

Stage = Literal["scores", "softcap", "bias", "softmax"]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]] | None

_STAGES = ("scores", "softcap", "bias", "softmax")


def attention_weights(
    q: SupportsDLPack,
    k: SupportsDLPack | Layer,
    *,
    stage: Stage = "softmax",
    rows: Rows = None,
    mask: MaskLike = None,
    bias: SupportsDLPack | DistanceBias | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: npt.ArrayLike | None = None,
    kv_lengths: Lengths = None,
    q_offset: Lengths = None,
    precision: Precision | None = None,
    threads: int | None = None,
) -> FloatArray:
    """The (q_len, kv_len) matrix that :func:`attention` does not build, at one of ONNX Attention's four stages.

    Args:
        stage: "scores": ``scale * q . k`` for every key that exists; "softcap": after the cap; "bias": after bias and
            mask, hidden keys -inf; "softmax": the weights, hidden keys 0, each row's sum 1 (less what ``sinks`` take),
            or 0 where it sees no key. Keys past ``kv_lengths`` are -inf, in "softmax" 0.
        rows: only these queries, shape (n,), negative ones counted from the last; ``rows=[-1]`` costs one row.
        q, k, mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, threads: as in :func:`attention`;
            on CUDA devices float32 is multiplied as such, whatever is permitted.

    Returns:
        New array (batch, q_heads, q_len or n, kv_len), dtype of ``q``, and of its library where it is a CUDA array.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention`; ValueError for an unknown stage.
        IndexError: a row that is not there.
    """
    if stage not in _STAGES:
        raise ValueError(f"stage must be one of {', '.join(_STAGES)}, got {stage!r}")
    if _core.is_cuda(q):
        from maskattn.cuda.weights import attention_weights as on_device

        made: FloatArray = on_device(
            q, k, stage=stage, rows=rows, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks,
            kv_lengths=kv_lengths, q_offset=q_offset, precision=precision,
        )  # fmt: skip
        return made
    if stage in ("scores", "softcap"):  # before bias and mask; what does not exist has no score all the same
        if isinstance(mask, _core.MaskPlan) and kv_lengths is None and isinstance(k, np.ndarray):
            kv_lengths = mask.kv_lengths
        mask, bias = None, None
    queries, keys, _, rest = prepare(
        q, k, None, mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, threads
    )
    return _core.attention_weights(queries, keys, stage, _rows(rows, queries), *rest, threads)


def attention_topk(
    q: SupportsDLPack,
    k: SupportsDLPack | Layer,
    topk: int,
    *,
    rows: Rows = None,
    mask: MaskLike = None,
    bias: SupportsDLPack | DistanceBias | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: npt.ArrayLike | None = None,
    kv_lengths: Lengths = None,
    q_offset: Lengths = None,
    precision: Precision | None = None,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The ``topk`` keys that each query attends to most, with their weights, without the (q_len, kv_len) matrix.

    Args:
        topk: how many keys, from 1 to kv_len.
        rows and all others: as in :func:`attention_weights`.

    Returns:
        Keys (batch, q_heads, q_len or n, topk), int64, largest weight first and earlier keys first among equals, -1
        where a query sees fewer; and their weights, float32 (float64 for float64 inputs), 0 there. Both of the library
        of ``q`` where it is a CUDA array.

    Raises:
        TypeError, ValueError, IndexError, NotImplementedError: as :func:`attention_weights`.
    """
    if _core.is_cuda(q):
        from maskattn.cuda.weights import attention_topk as on_device

        return on_device(
            q, k, topk, rows=rows, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks,
            kv_lengths=kv_lengths, q_offset=q_offset, precision=precision,
        )  # fmt: skip
    queries, keys, _, rest = prepare(
        q, k, None, mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, threads
    )
    # What has not four axes, the core refuses.
    count = check_topk(topk, rest.pages[1] if rest.pages else keys.shape[2] if np.ndim(keys) == 4 else None)
    return _core.largest_weights(queries, keys, count, _rows(rows, queries), *rest, threads)


def attention_key_sums(
    q: SupportsDLPack,
    k: SupportsDLPack | Layer,
    *,
    mask: MaskLike = None,
    bias: SupportsDLPack | DistanceBias | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: npt.ArrayLike | None = None,
    kv_lengths: Lengths = None,
    q_offset: Lengths = None,
    precision: Precision | None = None,
    threads: int | None = None,
) -> FloatArray:
    """How much attention each key gets, summed over the queries, without the (q_len, kv_len) matrix.

    What cache eviction asks for (H2O, arXiv:2306.14048). Arguments as in :func:`attention_weights`.

    Returns:
        Array (batch, q_heads, kv_len), float32 (float64 for float64 inputs), summed in float64, of the library of ``q``
        where it is a CUDA array.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention_weights`.
    """
    if _core.is_cuda(q):
        from maskattn.cuda.weights import attention_key_sums as on_device

        made: FloatArray = on_device(
            q, k, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, kv_lengths=kv_lengths,
            q_offset=q_offset, precision=precision,
        )  # fmt: skip
        return made
    queries, keys, _, rest = prepare(
        q, k, None, mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, threads
    )
    return _core.weights_per_key(queries, keys, *rest, threads)


def _rows(rows: Rows, q: FloatArray) -> list[int] | None:
    return check_rows(rows, q.shape[2]) if isinstance(q, np.ndarray) and q.ndim == 4 else None


def check_rows(rows: Rows, q_len: int) -> list[int] | None:
    """``rows`` counted from the first; None: all."""
    if rows is None:
        return None
    array = np.asarray(rows)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"rows must be a sequence of integers, got {array.dtype} of shape {array.shape}")
    for row in array.tolist():
        if not -q_len <= row < q_len:
            raise IndexError(f"rows must be from {-q_len} to {q_len - 1}, got {row}")
    return [int(row) % q_len for row in array]


def check_topk(topk: int, kv_len: int | None) -> int:
    """``topk`` as an integer; ``kv_len`` None: not known."""
    try:
        count = operator.index(topk)
    except TypeError:
        raise TypeError(f"topk must be an integer, got {type(topk).__name__}") from None
    if kv_len is not None and not 1 <= count <= kv_len:
        raise ValueError(f"topk must be from 1 to kv_len = {kv_len}, got {count}")
    return count
