"""Marian: the encoder-decoder of the OPUS-MT translators (arXiv:1804.00344), a post-norm Transformer."""

from maskattn import masks
from maskattn.families.family import Family, Stack


def stack(side: str) -> Stack:
    """The encoder or the decoder; the relatives of BART change some fields."""
    attention = {"self": "self_attn"} if side == "encoder" else {"self": "self_attn", "cross": "encoder_attn"}
    parts = {"q": ".q_proj", "k": ".k_proj", "v": ".v_proj", "out": ".out_proj", "norm": "_layer_norm"}
    layer = "model.{side}.layers.{layer}."
    return Stack(
        placement="post",
        final_norm=False,
        positions="sinusoidal",
        activation=lambda config: config["activation_function"],
        embedding_scale=lambda config: config["d_model"] ** 0.5 if config["scale_embedding"] else 1.0,
        mask=lambda config, layer: masks.Full() if side == "encoder" else masks.Causal(),
        sizes={
            "vocab": ("vocab_size",) if side == "encoder" else ("decoder_vocab_size", "vocab_size"),
            "width": ("d_model",),
            "positions": ("max_position_embeddings",),
            "layers": (f"{side}_layers",),
            "heads": (f"{side}_attention_heads",),
            "ffn": (f"{side}_ffn_dim",),
        },
        tensors={"embed": ("model.{side}.embed_tokens.weight", "model.shared.weight")},
        modules={f"{k}.{p}": layer + name + part for k, name in attention.items() for p, part in parts.items()}
        | {"ffn.up": layer + "fc1", "ffn.down": layer + "fc2", "ffn.norm": layer + "final_layer_norm"},
    )


MARIAN = Family(
    name="marian",
    tokenizer="MarianTokenizer",
    encoder=stack("encoder"),
    decoder=stack("decoder"),
    head_bias=("final_logits_bias",),
    defaults={"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True},
    unused=("model.*coder.embed_positions.weight", "model.shared.weight"),
)
