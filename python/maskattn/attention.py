"""Masked attention over NumPy arrays."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.masks.base import Mask
from maskattn.masks.dense import four_axes
from maskattn.masks.full import Full
from maskattn.strategy import STRATEGIES, Strategy, attention_without_hidden

FloatArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Lengths = int | npt.NDArray[np.integer[Any]] | list[int] | tuple[int, ...] | None
MaskLike = Mask | _core.MaskPlan | BoolArray | None
Stage = Literal["scores", "softcap", "bias", "softmax"]

_STAGES = ("scores", "softcap", "bias", "softmax")
_PRECISIONS = ("highest", "high", "medium")


@overload
def attention(
    q: FloatArray, k: FloatArray, v: FloatArray, *, mask: MaskLike = ..., bias: FloatArray | None = ...,
    scale: float | None = ..., softcap: float = ..., sinks: FloatArray | None = ..., kv_lengths: Lengths = ...,
    q_offset: Lengths = ..., precision: str = ..., return_lse: Literal[False] = ..., out: FloatArray | None = ...,
    strategy: Strategy = ..., threads: int | None = ...,
) -> FloatArray: ...  # fmt: skip
@overload
def attention(
    q: FloatArray, k: FloatArray, v: FloatArray, *, mask: MaskLike = ..., bias: FloatArray | None = ...,
    scale: float | None = ..., softcap: float = ..., sinks: FloatArray | None = ..., kv_lengths: Lengths = ...,
    q_offset: Lengths = ..., precision: str = ..., return_lse: Literal[True], out: FloatArray | None = ...,
    strategy: Strategy = ..., threads: int | None = ...,
) -> tuple[FloatArray, FloatArray]: ...  # fmt: skip
def attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    *,
    mask: MaskLike = None,
    bias: FloatArray | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: FloatArray | None = None,
    kv_lengths: Lengths = None,
    q_offset: Lengths = None,
    precision: str = "highest",
    return_lse: bool = False,
    out: FloatArray | None = None,
    strategy: Strategy = "mask",
    threads: int | None = None,
) -> FloatArray | tuple[FloatArray, FloatArray]:
    """Scaled dot-product attention (arXiv:1706.03762, section 3.2.1) without the (q_len, kv_len) matrix.

    ``out[b, h, i] = softmax(scale * q[b, h, i] . k[b, g, j] + bias[b, h, i, j] over the keys j it sees) . v[b, g, j]``,
    ``g = h // (q_heads // kv_heads)``. Computed segment by segment (online softmax, arXiv:2205.14135); keys that no
    query sees are not read. The bits of a row depend only on its query, the keys it sees and their positions: not on
    threads, batch, query chunking or padding on the right.

    Args:
        q: shape (batch, q_heads, q_len, head_dim), float32 or float64; last axis contiguous, other strides free.
        k: shape (batch, kv_heads, kv_len, head_dim), dtype of ``q``; ``q_heads`` is a multiple of ``kv_heads``.
        v: shape (batch, kv_heads, kv_len, v_head_dim), dtype of ``q``.
        mask: a :class:`~maskattn.masks.Mask`, a plan of one for this call's lengths, or a bool array (True = attend)
            broadcastable to (batch, q_heads, q_len, kv_len). None: every key that exists is seen.
        bias: added to the scaled score, in its units; dtype of ``q``, broadcastable like ``mask``. -inf hides a key.
        scale: default ``head_dim ** -0.5``; 1 is unscaled attention.
        softcap, sinks: not there yet.
        kv_lengths: shape (batch,) or one integer; keys at or past it do not exist. Default kv_len.
        q_offset: shape (batch,) or one integer; query ``i`` stands at position ``q_offset + i``. Default
            ``kv_lengths - q_len``: the last query sees the last key. 0 aligns the first query with the first key.
        precision: how float32 inputs are multiplied; "highest" is float32 accuracy, others are not there yet.
        return_lse: also return the natural logarithm of each row's sum of exponentiated scores.
        out: written and returned; shape (batch, q_heads, q_len, v_head_dim), dtype of ``q``, no overlap with inputs.
        strategy: "mask": keys that nobody sees stay where they are, unread. "delete": keys that no row of their
            sequence sees in any head are left out of copies of ``k``, ``v`` and ``bias``, and rows that see no key out
            of copies of ``q`` and ``bias``. "auto": deletes where that is estimated to be faster (many rows, hidden
            keys or rows scattered between others). The bits of a row are those of "mask" where no deleted key stands
            before one that its sequence uses; elsewhere sums are cut at other places, and it agrees to rounding.
        threads: at most this many; default :func:`~maskattn.num_threads`. Small calls use one.

    Returns:
        Array (batch, q_heads, q_len, v_head_dim), dtype of ``q``; with ``return_lse`` also (batch, q_heads, q_len).
        A query that sees no key gets zeros, and -inf as its logarithm.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing is written then.
        NotImplementedError: softcap, sinks, a precision other than "highest", or arrays on a CUDA device.
    """
    if softcap or sinks is not None or precision != "highest" or not isinstance(q, np.ndarray):
        _check_not_there_yet(q, softcap, sinks, precision)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    plan = None if mask is None and q_offset is None else _plan(mask, q, k, kv_lengths, q_offset, threads)
    result: FloatArray | tuple[FloatArray, FloatArray] | None
    if strategy != "mask" and plan is not None:

        def run(q: Any, k: Any, v: Any, plan: _core.MaskPlan, bias: Any, out: Any) -> Any:
            return _core.attention(q, k, v, None, None, plan, bias, scale, None, return_lse, out, threads)

        result = attention_without_hidden(strategy, q, k, v, plan, bias, out, run, threads)
        if result is not None:
            return result
    result = _core.attention(q, k, v, None, None, plan, bias, scale, kv_lengths, return_lse, out, threads)
    return result


def attention_weights(
    q: FloatArray,
    k: FloatArray,
    *,
    stage: Stage = "softmax",
    mask: MaskLike = None,
    bias: FloatArray | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: FloatArray | None = None,
    kv_lengths: Lengths = None,
    q_offset: Lengths = None,
    precision: str = "highest",
    threads: int | None = None,
) -> FloatArray:
    """The (q_len, kv_len) matrix that :func:`attention` does not build, at one of ONNX Attention's four stages.

    Args:
        stage: "scores": ``scale * q . k`` for every key that exists; "softcap": after the cap (there is none yet);
            "bias": after bias and mask, hidden keys -inf; "softmax": the weights, hidden keys 0, each row's sum 1,
            or 0 where it sees no key. Keys past ``kv_lengths`` are -inf, in "softmax" 0.
        q, k, mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, threads: as in :func:`attention`.

    Returns:
        New array (batch, q_heads, q_len, kv_len), dtype of ``q``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention`; ValueError for an unknown stage.
    """
    if stage not in _STAGES:
        raise ValueError(f"stage must be one of {', '.join(_STAGES)}, got {stage!r}")
    _check_not_there_yet(q, softcap, sinks, precision)
    if stage in ("scores", "softcap"):  # before bias and mask; what does not exist has no score all the same
        kv_lengths = mask.kv_lengths if isinstance(mask, _core.MaskPlan) and kv_lengths is None else kv_lengths
        mask, bias = None, None
    plan = None if mask is None and q_offset is None else _plan(mask, q, k, kv_lengths, q_offset, threads)
    return _core.attention_weights(q, k, stage, plan, bias, scale, kv_lengths, threads)


def _check_not_there_yet(q: object, softcap: float, sinks: object, precision: str) -> None:
    if softcap:
        raise NotImplementedError(f"softcap must be 0 in this version, got {softcap!r}")
    if sinks is not None:
        raise NotImplementedError("sinks must be None in this version")
    if precision != "highest":
        if precision not in _PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
        raise NotImplementedError(f"precision must be 'highest' in this version, got {precision!r}")
    if not isinstance(q, np.ndarray) and hasattr(q, "__cuda_array_interface__"):
        raise NotImplementedError("q must be a NumPy array in this version, got a CUDA array; copy it to the host")


def _plan(
    mask: MaskLike,
    q: FloatArray,
    k: FloatArray,
    kv_lengths: Lengths,
    q_offset: Lengths,
    threads: int | None,
) -> _core.MaskPlan | None:
    if isinstance(mask, _core.MaskPlan):
        if not mask.agrees(kv_lengths, q_offset):
            raise ValueError(
                f"kv_lengths and q_offset must be those that the plan was made with, got {kv_lengths} and {q_offset}; "
                "leave them out, or pass the mask itself"
            )
        return mask
    if not all(isinstance(a, np.ndarray) and a.ndim == 4 for a in (q, k)):
        return None  # the core says what is wrong with them
    if isinstance(mask, np.ndarray):
        expr = _core.mask_dense(four_axes(mask))
    elif mask is None or isinstance(mask, Mask):
        expr = (mask or Full()).expr
    else:
        raise TypeError(
            f"mask must be a Mask, a MaskPlan or a bool array (True = attend), got {type(mask).__name__}; "
            "see maskattn.masks"
        )
    batch, heads, q_len, _ = q.shape
    return _core.make_plan(expr, q_len, k.shape[2], batch, heads, q_offset, kv_lengths, threads)
