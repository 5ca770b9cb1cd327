"""What mypy --strict must refuse: each line that ends in ``# error``, and no other. Never run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import maskattn
from maskattn import masks

FloatArray = npt.NDArray[Any]

q = np.zeros((1, 4, 10, 8), np.float32)
keep = np.tri(10, dtype=np.bool_)
additive = np.zeros((10, 10), np.float32)
ignore = (~keep).view(np.uint8)
plan = masks.Causal().plan(10, 10)
model = maskattn.load()

# Arguments of another kind.
maskattn.attention([[1.0]], q, q)  # error
maskattn.attention(q, q, q, masks.Causal())  # error
maskattn.attention(q, q, q, threads="2")  # error
maskattn.attention(q, q, q, scale="auto")  # error
maskattn.attention(q, q, q, kv_lengths=[1.5])  # error
maskattn.attention(q, q, q, is_causal=True)  # error
maskattn.attention_weights(q, q, stage="logits")  # error

# True means attend: numbers are no mask, and neither is a kind that was not made.
maskattn.attention(q, q, q, mask=3)  # error
maskattn.attention(q, q, q, mask="causal")  # error
maskattn.attention(q, q, q, mask=additive)  # error
maskattn.attention(q, q, q, mask=ignore)  # error
maskattn.attention(q, q, q, mask=masks.Causal)  # error
maskattn.attention(q, q, q, bias=masks.Causal())  # error
masks.Dense(additive)  # error
masks.KeyPadding(ignore)  # error

# What comes back.
out, lse, third = maskattn.attention(q, q, q, return_lse=True)  # error
pair: FloatArray = maskattn.attention(q, q, q, return_lse=True)  # error
alone: tuple[FloatArray, FloatArray] = maskattn.attention(q, q, q)  # error
shape = maskattn.attention(q, q, q, return_lse=True).shape  # error
maskattn.attention_weights(q, q, return_lse=True)  # error

# Prepared calls.
maskattn.prepare(q, q, q, out=q)  # error
maskattn.prepare(q, q, q)(q, q)  # error
maskattn.prepare(q, q, q)(q, q, q, mask=plan)  # error
unpaired: FloatArray = maskattn.prepare(q, q, q, return_lse=True)(q, q, q)  # error

# Masks are combined with masks, and take what they say.
masks.Causal() & keep  # error
masks.Causal() | 3  # error
masks.Causal() & plan  # error
masks.Causal() + masks.Full()  # error
masks.SlidingWindow(window=3)  # error
masks.SlidingWindow(left=2.5)  # error
masks.Padding("7")  # error
masks.Padding([7.5])  # error
masks.PrefixLM()  # error
masks.Causal().to_bool(10)  # error
masks.Causal().left = 3  # error
masks.CausalMask()  # error

# Plans.
plan.count(10)  # error
plan.is_subset(masks.Causal())  # error
plan.kv_len = 11  # error

# Packed sequences.
maskattn.attention_varlen(q[0], q[0], q[0])  # error
maskattn.unpad(q, [True, False])  # error

# Generation.
model.generate(3)  # error
model.generate(["3.3.24"], beams=4)  # error
model.generate_ids(["3.3.24"])  # error
ids: list[int] = model.generate_ids([[3]])  # error
maskattn.load(3)  # error
