"""Qwen3 (arXiv:2505.09388): Qwen2 without these biases, but with norms of each head's queries and keys."""

from dataclasses import replace

from maskattn.families.llama import STACK
from maskattn.families.qwen2 import QWEN2, mask

NORMS = {f"self.{part}_norm": "{base}layers.{layer}.self_attn." + part + "_norm" for part in "qk"}
QWEN3 = replace(
    QWEN2,
    name="qwen3",
    tokenizer="Qwen2Tokenizer",
    decoder=replace(
        STACK,
        mask=mask,
        biases=lambda config: ("self.q", "self.k", "self.v", "self.out") * bool(config["attention_bias"]),
        modules={**STACK.modules, **NORMS},
        sizes={**STACK.sizes, "head_dim": lambda config: config.get("head_dim") or 128},
    ),
)
