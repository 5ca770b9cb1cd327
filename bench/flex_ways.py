"""FlexAttention, compiled for the case as its documentation recommends; its block mask is made beforehand.

Left out where compiling fails, and for decoding without a mask, where it is SDPA with more to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.side_by_side import Ways
from bench.torch_ways import Tensors
from bench.workloads import Workload
from maskattn.masks import Causal, Documents, PrefixLM, SlidingWindow

Allows = Callable[[Any, Any, Any, Any], Any]


def ways(w: Workload, t: Tensors) -> Ways:
    if w.is_decode or (w.mask is None and w.bias is None and w.kv_lengths is None):
        return {}
    options: dict[str, Any] = {"enable_gqa": w.q_heads != w.kv_heads}
    if w.bias is not None:
        options["score_mod"] = _biased(w, t)
    else:
        sequences = w.batch if w.kv_lengths is not None else None
        options["block_mask"] = create_block_mask(_allows(w), sequences, None, w.q_len, w.kv_len, device="cpu")
    torch.compiler.reset()  # after eight cases it would compile no more, and run uncompiled
    compiled = torch.compile(lambda q, k, v: flex_attention(q, k, v, **options), dynamic=False)
    return {"flex: compiled": lambda: compiled(t.q, t.k, t.v)}


def _biased(w: Workload, t: Tensors) -> Allows:
    assert w.bias is not None
    table = torch.from_numpy(w.bias.table.copy()).to(t.q.dtype)
    distances = torch.arange(1 - w.q_len, w.kv_len)
    buckets = torch.from_numpy(w.bias.bucket(distances.numpy()))
    return lambda score, b, h, q, k: score + table[buckets[k - q + w.q_len - 1], h]


def _allows(w: Workload) -> Allows:
    """The mask as a formula of positions where there is one, else looked up."""
    if w.kv_lengths is not None:
        lengths = torch.tensor(w.kv_lengths)
        return lambda b, h, q, k: k < lengths[b]
    if isinstance(w.mask, PrefixLM):
        prefix = w.mask.lengths
        return lambda b, h, q, k: (k <= q) | (k < prefix)
    if w.terms[0] == Causal():
        if len(w.terms) == 1:
            return lambda b, h, q, k: k <= q
        other = w.terms[1]
        if isinstance(other, SlidingWindow):
            left = other.left
            return lambda b, h, q, k: (k <= q) & (q - k <= left)
        if isinstance(other, Documents):
            ids = torch.from_numpy(other.ids[0].copy())
            return lambda b, h, q, k: (k <= q) & (ids[q] == ids[k])
    seen = torch.from_numpy(w.dense)
    return lambda b, h, q, k: seen[q, k]
