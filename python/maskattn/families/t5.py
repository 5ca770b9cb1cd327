"""T5 (arXiv:1910.10683), v1.0 and v1.1 (Flan): RMS norms before branches, a bias by distance, scores not scaled."""

from maskattn import masks
from maskattn.families.family import Config, Family, Stack


def stack(side: str) -> Stack:
    """A layer's parts are numbered: self-attention, cross-attention if it is a decoder, feed-forward."""
    kinds = {"self": "SelfAttention"} if side == "encoder" else {"self": "SelfAttention", "cross": "EncDecAttention"}
    layer, maps = "{side}.block.{layer}.layer.", {"q": "q", "k": "k", "v": "v", "out": "o"}
    numbered = [(i, k, kind) for i, (k, kind) in enumerate(kinds.items())]
    attention = {f"{k}.{our}": f"{layer}{i}.{kind}.{name}" for i, k, kind in numbered for our, name in maps.items()}
    dense = {"ffn.up": "wi", "ffn.gate": "wi_0", "ffn.gated": "wi_1", "ffn.down": "wo"}
    norms = {f"{k}.norm": f"{layer}{i}.layer_norm" for i, k in enumerate([*kinds, "ffn"])}
    return Stack(
        norm="rms",
        norm_eps=lambda config: config["layer_norm_epsilon"],
        positions="relative",
        attention_scale=lambda config, layer: 1.0,
        activation=lambda config: {"gated-gelu": "gelu_new"}.get(
            config["feed_forward_proj"], config["feed_forward_proj"].removeprefix("gated-")
        ),
        gated=lambda config: config["feed_forward_proj"].startswith("gated-"),
        biases=(),
        mask=lambda config, layer: masks.Full() if side == "encoder" else masks.Causal(),
        sizes={
            "vocab": ("vocab_size",),
            "width": ("d_model",),
            "layers": ("num_layers",) if side == "encoder" else ("num_decoder_layers", "num_layers"),
            "heads": ("num_heads",),
            "head_dim": ("d_kv",),
            "ffn": ("d_ff",),
        },
        tensors={
            "embed": ("{side}.embed_tokens.weight", "shared.weight"),
            "relative": ("{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
        },
        modules={**attention, **norms, "norm": "{side}.final_layer_norm"}
        | {our: f"{layer}{len(kinds)}.DenseReluDense.{name}" for our, name in dense.items()},
    )


def head_scale(config: Config) -> float:
    """v1.0 shrinks what its head gets; the config says which it is by embeddings that are tied or not."""
    scales = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    return float(config["d_model"] ** -0.5) if scales else 1.0


T5 = Family(
    name="t5",
    tokenizer="T5Tokenizer",
    encoder=stack("encoder"),
    decoder=stack("decoder"),
    tied=True,  # where the file has no head, whatever the config says
    head_scale=head_scale,
    defaults={"feed_forward_proj": "relu", "layer_norm_epsilon": 1e-6, "decoder_start_token_id": 0}
    | {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    unused=("shared.weight", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
)
