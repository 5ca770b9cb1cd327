"""Whisper (arXiv:2212.04356): an encoder of log-mel features, and a pre-norm decoder; keys have no bias."""

from dataclasses import replace

from maskattn.families.family import Family, Stack
from maskattn.families.pegasus import pre_norm

BIASED = (*(f"{kind}.{part}" for kind in ("self", "cross") for part in ("q", "v", "out")), "ffn.")


def stack(side: str) -> Stack:
    plain = pre_norm(side)
    limit = "max_source_positions" if side == "encoder" else "max_target_positions"
    return replace(
        plain,
        positions="learned",
        embedding_scale=1.0,
        biases=BIASED,
        sizes={**plain.sizes, "vocab": ("vocab_size",), "positions": (limit,)},
        tensors={
            "embed": ("model.{side}.embed_tokens.weight",),
            "positions": ("model.{side}.embed_positions.weight",),
        },
    )


def encoder() -> Stack:
    plain = stack("encoder")
    return replace(
        plain,
        inputs="sound",
        sizes={our: keys for our, keys in plain.sizes.items() if our != "vocab"} | {"mels": ("num_mel_bins",)},
        modules={**plain.modules, "conv.first": "model.encoder.conv1", "conv.second": "model.encoder.conv2"},
    )


WHISPER = Family(
    name="whisper",
    tokenizer="WhisperTokenizer",
    encoder=encoder(),
    decoder=stack("decoder"),
    head=("proj_out.weight",),
    defaults={"activation_function": "gelu", "num_mel_bins": 80, "tie_word_embeddings": True},
)
