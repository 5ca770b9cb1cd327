"""The ways in which people who know PyTorch compute a workload with scaled_dot_product_attention.

maskattn is compared with the fastest of them. Masks, slices and output buffers are made here, outside the timing.
A way returns its result as one tensor (batch, q_heads, q_len, head_dim), as a caller needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from workloads import Inputs, Workload

Way = Callable[[], Tensor]
Piece = tuple[slice, slice, slice, dict[str, Any]]  # sequences, rows, keys, options of a call
Ways = dict[str, Way]
_FEW_BYTES = 32 << 20  # a float mask of more than this is four times the memory of the bool one for nothing


@dataclass(frozen=True)
class Tensors:
    """The NumPy inputs, shared with PyTorch, not copied."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def of(cls, inputs: Inputs) -> Tensors:
        return cls(*(torch.from_numpy(x) for x in (inputs.q, inputs.k, inputs.v)))


def plain(w: Workload, t: Tensors) -> Ways:
    """No mask: one call; of grouped heads also with each group folded into the rows of its key head."""
    if w.q_heads == w.kv_heads:
        return {"SDPA": lambda: sdpa(t.q, t.k, t.v)}
    folded = t.q.view(w.batch, w.kv_heads, w.q_heads // w.kv_heads, w.head_dim)
    return {
        "enable_gqa": lambda: sdpa(t.q, t.k, t.v, enable_gqa=True),
        "group folded into rows": lambda: sdpa(folded, t.k, t.v).view(t.q.shape),
    }


def biased(t: Tensors, bias: np.ndarray[Any, np.dtype[np.float32]]) -> Ways:
    matrix = torch.from_numpy(bias)
    return {"SDPA": lambda: sdpa(t.q, t.k, t.v, attn_mask=matrix)}


def from_and_to_numpy(inputs: Inputs) -> Tensor:
    """One call; the result's NumPy array is made, too, and dropped."""
    result = sdpa(*(torch.from_numpy(x) for x in (inputs.q, inputs.k, inputs.v)))
    result.numpy()
    return result


def causal(w: Workload, t: Tensors) -> Ways:
    return {"is_causal": lambda: sdpa(t.q, t.k, t.v, is_causal=True, enable_gqa=w.q_heads != w.kv_heads)}


def padded(w: Workload, t: Tensors) -> Ways:
    assert w.kv_lengths is not None
    keep = torch.arange(w.kv_len) < torch.tensor(w.kv_lengths)[:, None, None, None]
    calls: list[Piece] = [(slice(b, b + 1), slice(0, w.q_len), slice(0, n), {}) for b, n in enumerate(w.kv_lengths)]
    return _masked(t, keep) | {"a call per sequence": _pieces(t, calls)}


def documents(w: Workload, t: Tensors) -> Ways:
    seen = _seen(w)
    first = seen.argmax(axis=1)  # every document starts with a row that sees itself first
    starts = np.flatnonzero(first == np.arange(w.q_len)).tolist()
    spans = [slice(begin, end) for begin, end in zip(starts, [*starts[1:], w.q_len], strict=True)]
    calls: list[Piece] = [(slice(None), span, span, {"is_causal": True}) for span in spans]
    return _masked(t, torch.from_numpy(seen)) | {"a call per document": _pieces(t, calls)}


def prefix_lm(w: Workload, t: Tensors) -> Ways:
    return _masked(t, torch.from_numpy(_seen(w))) | {f"chunks of {n}": _row_chunks(w, t, n) for n in (256, 512)}


def window(w: Workload, t: Tensors) -> Ways:
    ways = _masked(t, torch.from_numpy(_seen(w)))
    for n in (128, 256, 512):
        ways[f"chunks of {n}"] = _row_chunks(w, t, n)
        ways[f"overlapping views of {n}"] = _overlapping_views(w, t, n)
    return ways


def additive_causal(n: int) -> Ways:
    """The look-ahead mask as a matrix: new, and into memory that was there before."""
    buffer = torch.empty(n, n)
    return {
        "full().triu()": lambda: torch.full((n, n), -torch.inf).triu(1),
        "fill_ and triu_ in place": lambda: buffer.fill_(-torch.inf).triu_(1),
    }


def _seen(w: Workload) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The dense mask of a workload that has one sequence: (q_len, kv_len)."""
    blocks = np.array_split(np.arange(w.q_len), max(1, w.q_len // 256))
    return np.concatenate([w.seen(0, rows) for rows in blocks])


def _additive(keep: Tensor) -> Tensor:
    return torch.zeros(keep.shape).masked_fill_(~keep, -torch.inf)


def _masked(t: Tensors, keep: Tensor) -> Ways:
    """One call with the mask of all rows. SDPA turns a bool mask into a float one in every call."""
    ways: Ways = {"bool mask": lambda: sdpa(t.q, t.k, t.v, attn_mask=keep)}
    if 4 * keep.numel() <= _FEW_BYTES:
        additive = _additive(keep)
        ways["float mask"] = lambda: sdpa(t.q, t.k, t.v, attn_mask=additive)
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
        mask = {} if seen[:, span].all() else {"attn_mask": _additive(torch.from_numpy(seen[:, span]))}
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
    mask = _additive(torch.from_numpy(w.seen(0, np.arange(begin, begin + size))[:, :keys]))
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
