"""Gemma 2 (arXiv:2408.00118): norms before and after each branch, capped scores, a window in every other layer."""

from dataclasses import replace

from maskattn import masks
from maskattn.families.family import Config, Family
from maskattn.families.llama import STACK
from maskattn.families.mistral import windowed


def mask(config: Config, layer: int) -> masks.Mask:
    """By ``layer_types``; without it, the first layer slides, the second does not, and so on."""
    types = config.get("layer_types") or ["sliding_attention", "full_attention"] * (layer + 1)
    return windowed(config.get("sliding_window") if types[layer] == "sliding_attention" else None)


LAYER = "{base}layers.{layer}."
GEMMA2 = Family(
    name="gemma2",
    tokenizer="GemmaTokenizer",
    base="model.",
    decoder=replace(
        STACK,
        norm="rms plus one",
        placement="sandwich",
        embedding_scale=lambda config: config["hidden_size"] ** 0.5,
        attention_scale=lambda config, layer: config["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=lambda config: config.get("attn_logit_softcapping") or 0.0,
        activation=lambda config: config["hidden_activation"],
        biases=lambda config: ("self.",) * bool(config["attention_bias"]),
        mask=mask,
        sizes={**STACK.sizes, "head_dim": lambda config: config.get("head_dim") or 256},
        modules={
            **STACK.modules,
            "self.inner_norm": LAYER + "post_attention_layernorm",
            "ffn.norm": LAYER + "pre_feedforward_layernorm",
            "ffn.inner_norm": LAYER + "post_feedforward_layernorm",
        },
    ),
    logits_softcap=lambda config: config.get("final_logit_softcapping") or 0.0,
    defaults={
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    only={"use_bidirectional_attention": (False,)},
    unused=("*.rotary_emb.inv_freq",),
)
