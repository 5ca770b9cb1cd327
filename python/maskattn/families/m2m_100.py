"""M2M-100 (arXiv:2010.11125) and NLLB (arXiv:2207.04672): Pegasus with tensor2tensor's positions."""

from dataclasses import replace

from maskattn.families.family import Stack
from maskattn.families.pegasus import PEGASUS, pre_norm


def positioned(side: str) -> Stack:
    return replace(
        pre_norm(side),
        positions="sinusoidal halves",
        position_offset=lambda config: config["pad_token_id"] + 1,
    )


M2M_100 = replace(
    PEGASUS,
    name="m2m_100",
    tokenizer="M2M100Tokenizer",
    encoder=positioned("encoder"),
    decoder=positioned("decoder"),
    head_bias=(),
    defaults={
        "activation_function": "relu",
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "decoder_start_token_id": 2,
        "pad_token_id": 1,
    },
    unused=("model.shared.weight", "model.*coder.embed_positions.weights", "model.*coder.version"),
)
