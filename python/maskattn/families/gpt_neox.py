"""GPT-NeoX and Pythia (arXiv:2204.06745): attention and feed-forward side by side, a part of each head rotary."""

from maskattn import masks
from maskattn.families.family import Family, Stack

LAYER = "{base}layers.{layer}."
GPT_NEOX = Family(
    name="gpt_neox",
    tokenizer="GPTNeoXTokenizer",
    base="gpt_neox.",
    decoder=Stack(
        norm_eps=lambda config: config["layer_norm_eps"],
        placement=lambda config: "parallel" if config["use_parallel_residual"] else "pre",
        positions="rotary",
        rope=lambda config: {
            "rope_theta": config.get("rotary_emb_base", 10000.0),
            "partial_rotary_factor": config.get("rotary_pct", 0.25),
        },
        activation=lambda config: config["hidden_act"],
        biases=lambda config: ("self.", "ffn.") if config["attention_bias"] else ("ffn.",),
        mask=lambda config, layer: masks.Causal(),
        sizes={
            "vocab": ("vocab_size",),
            "width": ("hidden_size",),
            "layers": ("num_hidden_layers",),
            "heads": ("num_attention_heads",),
            "ffn": ("intermediate_size",),
        },
        tensors={"embed": ("{base}embed_in.weight",)},
        fused={"self.qkv": "by head"},
        modules={
            "self.qkv": LAYER + "attention.query_key_value",
            "self.out": LAYER + "attention.dense",
            "self.norm": LAYER + "input_layernorm",
            "ffn.up": LAYER + "mlp.dense_h_to_4h",
            "ffn.down": LAYER + "mlp.dense_4h_to_h",
            "ffn.norm": LAYER + "post_attention_layernorm",
            "norm": "{base}final_layer_norm",
        },
    ),
    # Older checkpoints call the head by its place in the pipeline.
    head=("lm_head.weight", "embed_out.weight"),
    defaults={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    unused=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)
