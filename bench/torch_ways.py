"""The ways in which people who know PyTorch compute a workload with scaled_dot_product_attention.

``torch`` is one call of it, ``expert`` what somebody makes of it who knows its kernels: a call per sequence, document
or chunk, heads of a group folded into rows. Masks, slices and output buffers are made here, outside the timing. A way
returns its result as one tensor (batch, q_heads, q_len, head_dim), as a caller needs it, groups folded or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from bench.side_by_side import Ways
from bench.workloads import Inputs, Workload
from maskattn.masks import Causal, Documents, PrefixLM, SlidingWindow

Way = Callable[[], Tensor]
Piece = tuple[slice, slice, slice, dict[str, Any]]  # sequences, rows, keys, options of a call
_FEW_BYTES = 32 << 20  # a float mask of more than this is four times the memory of the bool one for nothing


@dataclass(frozen=True)
class Tensors:
    """The NumPy inputs, shared with PyTorch, not copied."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def of(cls, inputs: Inputs) -> Tensors:
        return cls(*map(tensor, (inputs.q, inputs.k, inputs.v)))


def tensor(array: Any) -> Tensor:
    """Over the array's memory, bfloat16 too."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def ways(w: Workload, t: Tensors) -> Ways:
    if w.kv_lengths is not None:
        return padded(w, t)
    if w.bias is not None:
        return biased(w, t)
    if w.mask is None:
        return plain(w, t)
    if w.mask == Causal():
        return {"torch: is_causal": lambda: sdpa(t.q, t.k, t.v, is_causal=True, enable_gqa=w.q_heads != w.kv_heads)}
    rearranged = {SlidingWindow: window, Documents: documents, PrefixLM: prefix_lm}
    return next((rearranged[type(term)] for term in w.terms if type(term) in rearranged), masked)(w, t)


def from_numpy(w: Workload, inputs: Inputs) -> Ways:
    """What a user of NumPy pays: arrays in and an array out in every call."""

    def run() -> Any:
        out = sdpa(tensor(inputs.q), tensor(inputs.k), tensor(inputs.v))
        return out.view(torch.int16).numpy().view(inputs.q.dtype) if out.dtype == torch.bfloat16 else out.numpy()

    return {"torch: SDPA, from and to NumPy": run}


def plain(w: Workload, t: Tensors) -> Ways:
    """No mask: one call; of grouped heads also with each group folded into the rows of its key head."""
    if w.q_heads == w.kv_heads:
        return {"torch: SDPA": lambda: sdpa(t.q, t.k, t.v)}
    folded = _folded(w, t)
    return {
        "torch: enable_gqa": lambda: sdpa(t.q, t.k, t.v, enable_gqa=True),
        "expert: group folded into rows": lambda: sdpa(folded.q, t.k, t.v),
    }


def biased(w: Workload, t: Tensors) -> Ways:
    assert w.bias is not None
    values = w.bias.values(np.arange(w.q_len)[:, None], np.arange(w.kv_len)[None, :])
    matrix = torch.from_numpy(values)[None].to(t.q.dtype)
    return {"torch: bias matrix": lambda: sdpa(t.q, t.k, t.v, attn_mask=matrix)}


def masked(w: Workload, t: Tensors) -> Ways:
    return _masked(t, torch.from_numpy(w.dense))


def padded(w: Workload, t: Tensors) -> Ways:
    assert w.kv_lengths is not None
    keep = torch.arange(w.kv_len) < torch.tensor(w.kv_lengths)[:, None, None, None]
    if w.q_heads != w.kv_heads:
        t = _folded(w, t)
    rows = slice(0, t.q.shape[2])
    calls: list[Piece] = [(slice(b, b + 1), rows, slice(0, n), {}) for b, n in enumerate(w.kv_lengths)]
    return _masked(t, keep) | {"expert: a call per sequence": _pieces(t, calls)}


def documents(w: Workload, t: Tensors) -> Ways:
    seen = w.dense
    first = seen.argmax(axis=1)  # every document starts with a row that sees itself first
    starts = np.flatnonzero(first == np.arange(w.q_len)).tolist()
    spans = [slice(begin, end) for begin, end in zip(starts, [*starts[1:], w.q_len], strict=True)]
    calls: list[Piece] = [(slice(None), span, span, {"is_causal": True}) for span in spans]
    return _masked(t, torch.from_numpy(seen)) | {"expert: a call per document": _pieces(t, calls)}


def prefix_lm(w: Workload, t: Tensors) -> Ways:
    return _masked(t, torch.from_numpy(w.dense)) | {f"expert: chunks of {n}": _row_chunks(w, t, n) for n in (256, 512)}


def window(w: Workload, t: Tensors) -> Ways:
    ways = _masked(t, torch.from_numpy(w.dense))
    for n in (128, 256, 512):
        ways[f"expert: chunks of {n}"] = _row_chunks(w, t, n)
        ways[f"expert: overlapping views of {n}"] = _overlapping_views(w, t, n)
    return ways


def _folded(w: Workload, t: Tensors) -> Tensors:
    """Of one query row: the heads of a group stand as rows, so that their keys are read once."""
    return Tensors(t.q.view(w.batch, w.kv_heads, w.q_heads // w.kv_heads, w.head_dim), t.k, t.v)


def _additive(keep: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(keep.shape, dtype=dtype).masked_fill_(~keep, -torch.inf)


def _masked(t: Tensors, keep: Tensor) -> Ways:
    """One call with the mask of all rows. SDPA turns a bool mask into a float one in every call."""
    ways: Ways = {"torch: bool mask": lambda: sdpa(t.q, t.k, t.v, attn_mask=keep)}
    if 4 * keep.numel() <= _FEW_BYTES:
        additive = _additive(keep, t.q.dtype)
        ways["torch: float mask"] = lambda: sdpa(t.q, t.k, t.v, attn_mask=additive)
    return ways


def _pieces(t: Tensors, calls: Sequence[Piece]) -> Way:
    """A call for each piece, into one result; slices are views."""
    out = torch.empty_like(t.q)
    parts = [(out[b, :, i], t.q[b, :, i], t.k[b, :, j], t.v[b, :, j], options) for b, i, j, options in calls]

    def run() -> Tensor:
        for target, q, k, v, options in parts:
            target.copy_(sdpa(q, k, v, **options))
        return out

    return run


def _row_chunks(w: Workload, t: Tensors, size: int) -> Way:
    """A call for each ``size`` rows, over the keys that any of them sees, with the small mask of that rectangle."""
    calls: list[Piece] = []
    for i in range(0, w.q_len, size):
        seen = w.seen(0, np.arange(i, min(i + size, w.q_len)))
        keys = np.flatnonzero(seen.any(axis=0))
        span = slice(int(keys[0]), int(keys[-1]) + 1)
        mask = {} if seen[:, span].all() else {"attn_mask": _additive(torch.from_numpy(seen[:, span]), t.q.dtype)}
        calls.append((slice(None), slice(i, i + size), span, mask))
    return _pieces(t, calls)


def _overlapping_views(w: Workload, t: Tensors, size: int) -> Way:
    """All chunks of ``size`` rows but the first as one batch: their keys overlap, as strided views can.

    A chunk has ``size`` rows, and their keys with ``first * size`` before them: one mask serves every chunk.
    """
    reach = w.q_len - 1 - int(w.seen(0, np.array([w.q_len - 1])).argmax())  # keys before a row that it sees
    first = -(-reach // size)
    chunks, keys = w.q_len // size - first, (first + 1) * size
    head, row, column = t.k.stride()[1:]

    def batched(x: Tensor, start: int, rows: int) -> Tensor:
        shape = (chunks, w.q_heads, rows, w.head_dim)
        return x.as_strided(shape, (size * row, head, row, column), x.storage_offset() + start * row)

    begin = first * size
    mask = _additive(torch.from_numpy(w.seen(0, np.arange(begin, begin + size))[:, :keys]), t.q.dtype)
    out = torch.empty_like(t.q)
    start = _row_chunks(Workload("", 1, w.q_heads, w.kv_heads, begin, begin, w.head_dim, w.mask), _head(t, begin), size)
    q, k, v, target = batched(t.q, begin, size), batched(t.k, 0, keys), batched(t.v, 0, keys), batched(out, begin, size)

    def run() -> Tensor:
        out[:, :, :begin].copy_(start())
        target.copy_(sdpa(q, k, v, attn_mask=mask))
        return out

    return run


def _head(t: Tensors, rows: int) -> Tensors:
    return Tensors(t.q[:, :, :rows], t.k[:, :, :rows], t.v[:, :, :rows])
