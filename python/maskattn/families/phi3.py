"""Phi-3 (arXiv:2404.14219): Mistral whose maps of one input are stored as one, and LongRoPE for long sequences."""

from dataclasses import replace

from maskattn.families.llama import STACK
from maskattn.families.mistral import MISTRAL, mask

LAYER = "{base}layers.{layer}."
FUSED = {"self.qkv": LAYER + "self_attn.qkv_proj", "ffn.gate_up": LAYER + "mlp.gate_up_proj"}
PARTS = ("self.q", "self.k", "self.v", "ffn.gate", "ffn.gated")
PHI3 = replace(
    MISTRAL,
    name="phi3",
    decoder=replace(
        STACK,
        mask=mask,
        biases=(),
        rope={"aliases": {"su": "longrope", "yarn": "longrope"}},
        fused={"self.qkv": "stacked", "ffn.gate_up": "stacked"},
        modules={our: name for our, name in STACK.modules.items() if our not in PARTS} | FUSED,
    ),
    defaults={
        **MISTRAL.defaults,
        "sliding_window": None,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
)
