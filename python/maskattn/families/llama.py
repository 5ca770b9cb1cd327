"""Llama (arXiv:2302.13971, arXiv:2407.21783): pre-norm, rotary positions, gated feed-forward, grouped-query heads."""

from maskattn import masks
from maskattn.families.family import Config, Family, Stack


def head_dim(config: Config) -> int:
    """Its own key, or what the heads divide the width into."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


STACK = Stack(
    norm="rms",
    norm_eps=lambda config: config["rms_norm_eps"],
    positions="rotary",
    activation=lambda config: config["hidden_act"],
    gated=True,
    biases=lambda config: ("self.",) * bool(config["attention_bias"]) + ("ffn.",) * bool(config["mlp_bias"]),
    mask=lambda config, layer: masks.Causal(),
    sizes={
        "vocab": ("vocab_size",),
        "width": ("hidden_size",),
        "layers": ("num_hidden_layers",),
        "heads": ("num_attention_heads",),
        "kv_heads": ("num_key_value_heads", "num_attention_heads"),
        "head_dim": head_dim,
        "ffn": ("intermediate_size",),
    },
    tensors={"embed": ("{base}embed_tokens.weight",)},
    modules={
        "self.q": "{base}layers.{layer}.self_attn.q_proj",
        "self.k": "{base}layers.{layer}.self_attn.k_proj",
        "self.v": "{base}layers.{layer}.self_attn.v_proj",
        "self.out": "{base}layers.{layer}.self_attn.o_proj",
        "self.norm": "{base}layers.{layer}.input_layernorm",
        "ffn.gate": "{base}layers.{layer}.mlp.gate_proj",
        "ffn.gated": "{base}layers.{layer}.mlp.up_proj",
        "ffn.down": "{base}layers.{layer}.mlp.down_proj",
        "ffn.norm": "{base}layers.{layer}.post_attention_layernorm",
        "norm": "{base}norm",
    },
)
LLAMA = Family(
    name="llama",
    decoder=STACK,
    base="model.",
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    },
    unused=("*.rotary_emb.inv_freq",),
)
