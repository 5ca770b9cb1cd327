"""What a user writes and mypy --strict accepts; it also runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import maskattn
from maskattn import masks

FloatArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((2, 4, 10, 8), dtype=np.float32) for _ in range(3))
double: npt.NDArray[np.float64] = rng.standard_normal((1, 1, 10, 8))

# Attention: one array, or a pair where the logarithms are asked for.
assert_type(maskattn.attention(q, k, v), FloatArray)
assert_type(maskattn.attention(double, double, double, return_lse=False), FloatArray)
out, lse = maskattn.attention(q, k, v, mask=masks.Causal(), return_lse=True)
assert_type(out, FloatArray)
assert_type(lse, FloatArray)
assert_type(maskattn.attention_weights(q, k, stage="scores"), FloatArray)
maskattn.attention(q, k, v, kv_lengths=[10, 7], q_offset=0, scale=0.5, out=out, threads=2)
maskattn.attention(q, k, v, kv_lengths=np.array([10, 7]), q_offset=(0, 3), bias=np.zeros((10, 10), np.float32))

# Prepared calls: likewise.
call = maskattn.prepare(q, k, v, mask=masks.Causal())
assert_type(call(q, k, v, out=out), FloatArray)
assert_type(maskattn.prepare(q, k, v, return_lse=True)(q, k, v, kv_lengths=[10, 7])[1], FloatArray)

# Masks: an algebra, in which True means attend.
window = masks.Causal() & masks.SlidingWindow(left=3)
odd = ~window | masks.Padding([10, 7]) | masks.Padding(3, side="left") | masks.Padding(np.array([1, 2]))
assert_type(window, masks.Mask)
assert_type(odd, masks.Mask)
assert_type(odd.to_bool(10, 10), BoolArray)
assert_type(window.to_additive(10, 10, np.float32), FloatArray)
assert_type(window.count(10, 10, kv_lengths=8), int)
assert_type(window.density(10, 10), float)
assert_type(window.explain(0, 0, 5, 1), str)
keep = rng.random((10, 10)) < 0.5
kinds: list[masks.Mask] = [
    masks.Full(),
    masks.PrefixLM([2, 3]),
    masks.Documents([0, 0, 1, 1, 2, 2, 2, 2, 2, 2]),
    masks.Documents(np.repeat([0, 1, 2], [4, 3, 3])),
    masks.Documents.from_cu_seqlens([0, 4, 10]),
    masks.KeyPadding(keep[0]),
    masks.QueryPadding(keep[0]),
    masks.Dense(keep),
    masks.Chunked(4),
    masks.Dilated(2, 3),
    masks.GlobalTokens([0, 5]),
    masks.FirstTokens(2),
    masks.Tree([-1, 0, 0, 1, 1, 2, 2, 3, 3, 4]),
    masks.BlockSparse(np.eye(5, dtype=np.bool_), size=2),
    masks.Neighborhood(3, 10),
    masks.Neighborhood((1, 3), (2, 5)),
    masks.BlockDiffusion(2, length=5),
    masks.Function(lambda b, h, q_pos, kv_pos: kv_pos <= q_pos),
]
for mask in (*kinds, keep, None):
    maskattn.attention(q, k, v, mask=mask)

# Other libraries' conventions.
assert_type(masks.from_torch_mha(attn_mask=~keep), masks.Mask)
assert_type(masks.check(keep), masks.Report)

# Plans: lowered once, for any number of calls.
plan = window.plan(10, 10)
assert_type(plan, maskattn.MaskPlan)
assert_type(plan == masks.Full().plan(10, 10), bool)
assert_type(plan.is_subset(masks.Causal().plan(10, 10)), bool)
assert_type(plan.empty_rows(), BoolArray)
assert_type(maskattn.attention(q, k, v, mask=plan), FloatArray)

# Packed sequences.
real = np.arange(10) < np.array([[10], [7]])
tokens, ends = maskattn.unpad(q.swapaxes(1, 2), real)
assert_type(ends, npt.NDArray[np.int64])
packed: FloatArray = maskattn.attention_varlen(tokens, tokens, tokens, ends, ends, mask=masks.Causal())
assert_type(maskattn.repad(packed, real), FloatArray)

# Generation.
model = maskattn.load()
assert_type(model, maskattn.Model)
assert_type(model.generate(["3 March 2024"], max_new_tokens=12), list[str])
assert_type(model.generate_ids([[3, 4, 5], [6]], max_new_tokens=2, do_sample=True), list[maskattn.Generated])
assert_type(model.score(["3.3.24"], ["2024-03-03"]), list[npt.NDArray[np.float32]])

# The machine.
assert_type(maskattn.runnable_isas(), list[str])
maskattn.set_isa(maskattn.info()["isa"])
assert_type(maskattn.num_threads(), int)
maskattn.set_num_threads(maskattn.num_threads())
