"""Masked attention over NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn._core import MaskPlan
from maskattn.arguments import Arguments, FloatArray, Lengths, MaskLike, Options, Precision, borrowed, prepare, stored
from maskattn.strategy import STRATEGIES, Strategy, attention_without_hidden

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from maskattn.cache import Layer
    from maskattn.interop import Kind, SupportsDLPack


@overload
def attention(
    q: SupportsDLPack, k: SupportsDLPack | Layer, v: SupportsDLPack | None = ..., *, return_lse: Literal[False] = ...,
    out: SupportsDLPack | None = ..., like: None = ..., strategy: Strategy = ..., device: str | None = ...,
    **options: Unpack[Options],
) -> FloatArray: ...  # fmt: skip
@overload
def attention(
    q: SupportsDLPack, k: SupportsDLPack | Layer, v: SupportsDLPack | None = ..., *, return_lse: Literal[True],
    out: SupportsDLPack | None = ..., like: None = ..., strategy: Strategy = ..., device: str | None = ...,
    **options: Unpack[Options],
) -> tuple[FloatArray, FloatArray]: ...  # fmt: skip
@overload
def attention(
    q: SupportsDLPack, k: SupportsDLPack | Layer, v: SupportsDLPack | None = ..., *, return_lse: Literal[False] = ...,
    out: SupportsDLPack | None = ..., like: Kind, strategy: Strategy = ..., device: str | None = ...,
    **options: Unpack[Options],
) -> Kind: ...  # fmt: skip
@overload
def attention(
    q: SupportsDLPack, k: SupportsDLPack | Layer, v: SupportsDLPack | None = ..., *, return_lse: Literal[True],
    out: SupportsDLPack | None = ..., like: Kind, strategy: Strategy = ..., device: str | None = ...,
    **options: Unpack[Options],
) -> tuple[Kind, Kind]: ...  # fmt: skip
def attention(
    q: Any,
    k: Any,
    v: Any = None,
    *,
    mask: MaskLike = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: npt.ArrayLike | None = None,
    kv_lengths: Lengths = None,
    q_offset: Lengths = None,
    precision: Precision | None = None,
    return_lse: bool = False,
    out: Any = None,
    like: Any = None,
    strategy: Strategy = "mask",
    device: str | None = None,
    threads: int | None = None,
) -> Any:
    """Scaled dot-product attention (arXiv:1706.03762, section 3.2.1) without the (q_len, kv_len) matrix.

    ``out[b, h, i] = softmax(cap(scale * q[b, h, i] . k[b, g, j]) + bias[b, h, i, j] over the keys j it sees)
    . v[b, g, j]``, ``g = h // (q_heads // kv_heads)``: the order of ONNX's Attention operator. Computed segment by
    segment (online softmax, arXiv:2205.14135); keys that no query sees are not read. The bits of a row depend only on
    its query, the keys it sees and their positions: not on threads, batch, query chunking or padding on the right.

    Args:
        q: shape (batch, q_heads, q_len, head_dim), float32, float16, bfloat16 (ml_dtypes) or float64; last axis
            contiguous, other strides free.
        k: shape (batch, kv_heads, kv_len, head_dim), any of these dtypes; ``q_heads`` is a multiple of ``kv_heads``.
        v: shape (batch, kv_heads, kv_len, v_head_dim), any of these dtypes. Products and sums are in float32, or in
            float64 if one of the three arrays is; ``out`` is rounded to the dtype of ``q`` once. Left out where ``k``
            is a layer of a :class:`~maskattn.KVCache`: its keys and values are read where they are.
        mask: a :class:`~maskattn.masks.Mask`, a plan of one for this call's lengths, or a bool array (True = attend)
            broadcastable to (batch, q_heads, q_len, kv_len). None: every key that exists is seen.
        bias: added to the scaled and capped score: an array of one of the dtypes above, broadcastable like ``mask``,
            where -inf hides a key; or :class:`~maskattn.ALiBi`, :class:`~maskattn.RelativeBias`.
        scale: default ``head_dim ** -0.5``; 1 is unscaled attention.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0: they do not.
        sinks: shape (q_heads,), learned scores of a key without a value: they take probability from a row that sees
            something and give nothing (arXiv:2309.17453, gpt-oss). -inf: none.
        kv_lengths: shape (batch,) or one integer; keys at or past it do not exist. Default kv_len.
        q_offset: shape (batch,) or one integer; query ``i`` stands at position ``q_offset + i``. Default
            ``kv_lengths - q_len``: the last query sees the last key. 0 aligns the first query with the first key.
        precision: how float32 inputs are multiplied where there is a matrix unit of bfloat16 (AMX), in PyTorch's words:
            "highest" as exact sums of three bfloat16 numbers, with float32's accuracy; "high" as two, with 16 bits
            (relative error about 5e-6 on normal inputs); "medium" rounded to one. float16 and mixtures of dtypes count
            as float32; bfloat16 inputs are multiplied as they are, always. Instruction sets without such a unit
            multiply float32 numbers, whatever is permitted. CUDA's tensor cores multiply more than 8 queries' rows:
            "highest" as sums of two tf32 numbers, the others as above, "medium" by tf32. Default:
            :func:`~maskattn.set_precision`'s, "highest".
        return_lse: also return the natural logarithm of each softmax's denominator, sinks included.
        out: written and returned; shape (batch, q_heads, q_len, v_head_dim), dtype of ``q``, no overlap with inputs.
        like: an array whose library's kind of array the results shall be, over the same memory. All arrays may be of
            other libraries: what has ``__dlpack__`` on the CPU comes in without a copy.
        strategy: "mask": keys that nobody sees stay where they are, unread. "delete": keys that no row of their
            sequence sees in any head are left out of copies of ``k``, ``v`` and ``bias``, and rows that see no key out
            of copies of ``q`` and ``bias``. "auto": deletes where that is estimated to be faster (many rows, hidden
            keys or rows scattered between others). The bits of a row are those of "mask" where no deleted key stands
            before one that its sequence uses; elsewhere sums are cut at other places, and it agrees to rounding.
            Biases by distance and caches need keys where they are: there it is "mask" always.
        device: "cuda" (or "cuda:1") moves NumPy arrays to that device and the results back. CUDA arrays need no
            ``device``: they stay where they are, the work is launched on their library's current stream and not
            waited for, and the results are arrays of their library. There q, k and v have one of float32, float16 and
            bfloat16, head dims are at most 256, ``mask``, ``sinks``, ``kv_lengths`` and ``q_offset`` may be CUDA
            arrays too, and the bits of a row depend on the kernel as well, which shapes and the device decide.
        threads: at most this many; default :func:`~maskattn.num_threads`. Small calls use one.

    Returns:
        Array (batch, q_heads, q_len, v_head_dim), dtype of ``q``; with ``return_lse`` also (batch, q_heads, q_len),
        float32 (float64 where sums are). A query that sees no key gets zeros, and -inf as its logarithm.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing is written then.
        maskattn.cuda.NotBuilt (an ImportError): CUDA arrays where the package was built without CUDA.
        NotImplementedError: arrays on any other device.
    """
    if (
        mask is None
        and bias is None
        and not softcap
        and sinks is None
        and q_offset is None
        and precision is None
        and like is None
        and strategy == "mask"
        and device is None
    ):  # the shortest way, for the smallest calls
        result = _core.attention_plain(q, k, v, scale, kv_lengths, return_lse, out, threads)
        if result is not NotImplemented:
            return result
        if v is None and kv_lengths is None and hasattr(k, "k_pool") and k.window is None and isinstance(q, np.ndarray):
            keys, values, pages, kv_lengths = stored(k)
            rest = Arguments(pages, None, None, scale, kv_lengths, None)
            result = _core.attention(q, keys, values, None, *rest, return_lse, borrowed("out", out), threads)
            return returned(result, out, like)
    if device is not None or _core.is_cuda(q):
        from maskattn.cuda.call import attention as on_device

        return on_device(
            q, k, v, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, kv_lengths=kv_lengths,
            q_offset=q_offset, precision=precision, return_lse=return_lse, out=out, like=like, strategy=strategy,
            device=device,
        )  # fmt: skip
    lowered = prepare(q, k, v, mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, threads)
    result = _attention(*lowered, return_lse, borrowed("out", out), strategy, threads)
    return returned(result, out, like)


def _attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    rest: Arguments,
    return_lse: bool,
    out: FloatArray | None,
    strategy: Strategy,
    threads: int | None,
) -> Any:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if strategy != "mask" and rest.plan is not None and not rest.knows_positions():

        def run(q: FloatArray, k: FloatArray, v: FloatArray, plan: MaskPlan, bias: Any, out: Any) -> Any:
            left = rest._replace(plan=plan, bias=bias, kv_lengths=None)
            return _core.attention(q, k, v, None, *left, return_lse, out, threads)

        result = attention_without_hidden(strategy, q, k, v, rest.plan, rest.bias, out, run, threads)
        if result is not None:
            return result
    return _core.attention(q, k, v, None, *rest, return_lse, out, threads)


def returned(result: Any, out: Any, like: Any) -> Any:
    """``result``, an array or a tuple whose first is one, as the caller's ``out`` or as the kind of ``like``."""
    if like is not None:
        from maskattn.interop import like as as_kind

        return as_kind(result, like) if isinstance(result, np.ndarray) else tuple(as_kind(r, like) for r in result)
    if out is None or isinstance(out, np.ndarray):
        return result
    return (out, *result[1:]) if isinstance(result, tuple) else out


def merge_states(
    out_a: FloatArray, lse_a: FloatArray, out_b: FloatArray, lse_b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Attention over the union of two disjoint sets of keys, from the results over each (arXiv:2501.01005).

    Args:
        out_a, out_b: shape (..., q_len, v_head_dim), results of :func:`attention`.
        lse_a, lse_b: shape (..., q_len), natural logarithms as ``return_lse`` gives them; -inf for an empty part.
            Sinks, if any, must have been given to one of the parts only. All four may be CUDA arrays, of float32,
            float16 or bfloat16.

    Returns:
        (out, lse) of the union, dtypes of ``out_a`` and ``lse_a``, and their libraries' where they are CUDA arrays.
        Empty parts are neutral, two of them give zeros and -inf; associative up to rounding.

    Raises:
        TypeError, ValueError: arrays are not floating or their shapes do not belong together.
    """
    given = (out_a, lse_a, out_b, lse_b)
    if any(_core.is_cuda(array) for array in given):
        from maskattn.cuda.merge import merge_states as on_device

        return on_device(*given)
    arrays = [np.asarray(array) for array in given]
    for name, array in zip(("out_a", "lse_a", "out_b", "lse_b"), arrays, strict=True):
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"{name} must be a floating array, got {array.dtype}")
    out_a, lse_a, out_b, lse_b = arrays
    for name, array, shape in (
        ("lse_a", lse_a, out_a.shape[:-1]),
        ("out_b", out_b, out_a.shape),
        ("lse_b", lse_b, out_a.shape[:-1]),
    ):
        if array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape}, as out_a of shape {out_a.shape} asks for, got {array.shape}"
            )
    top = np.maximum(lse_a, lse_b)
    reference = np.where(np.isneginf(top), 0, top)
    share_a, share_b = np.exp(lse_a - reference), np.exp(lse_b - reference)
    total = share_a + share_b
    with np.errstate(divide="ignore"):
        lse = reference + np.log(total)
    safe = np.where(total == 0, 1, total)[..., None]
    # A part of no weight is left out, not multiplied by zero: what stands there does not matter.
    parts = [
        np.where(share[..., None] > 0, out, 0) * (share[..., None] / safe)
        for out, share in ((out_a, share_a), (out_b, share_b))
    ]
    return (parts[0] + parts[1]).astype(out_a.dtype), lse.astype(lse_a.dtype)
