"""GPT-2: a pre-norm decoder with learned positions; its maps are stored as (in, out)."""

from maskattn import masks
from maskattn.families.family import Config, Family, Stack


def attention_scale(config: Config, layer: int) -> float:
    scale = (config["n_embd"] // config["n_head"]) ** -0.5 if config["scale_attn_weights"] else 1.0
    return float(scale / (layer + 1 if config["scale_attn_by_inverse_layer_idx"] else 1))


GPT2 = Family(
    name="gpt2",
    tokenizer="GPT2Tokenizer",
    base="transformer.",
    decoder=Stack(
        norm_eps=lambda config: config["layer_norm_epsilon"],
        positions="learned",
        activation=lambda config: config["activation_function"],
        attention_scale=attention_scale,
        transposed=True,
        mask=lambda config, layer: masks.Causal(),
        sizes={
            "vocab": ("vocab_size",),
            "width": ("n_embd",),
            "positions": ("n_positions",),
            "layers": ("n_layer",),
            "heads": ("n_head",),
            "ffn": lambda config: config.get("n_inner") or 4 * config["n_embd"],
        },
        tensors={"embed": ("{base}wte.weight",), "positions": ("{base}wpe.weight",)},
        fused={"self.qkv": "stacked"},
        modules={
            "self.qkv": "{base}h.{layer}.attn.c_attn",
            "self.out": "{base}h.{layer}.attn.c_proj",
            "self.norm": "{base}h.{layer}.ln_1",
            "ffn.up": "{base}h.{layer}.mlp.c_fc",
            "ffn.down": "{base}h.{layer}.mlp.c_proj",
            "ffn.norm": "{base}h.{layer}.ln_2",
            "norm": "{base}ln_f",
        },
    ),
    defaults={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    },
    only={"add_cross_attention": (False,)},
    unused=("*.attn.bias", "*.attn.masked_bias"),
)
