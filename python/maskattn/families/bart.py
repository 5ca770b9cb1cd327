"""BART (arXiv:1910.13461): Marian with learned positions from row 2 on, and a norm of the embeddings."""

from dataclasses import replace
from typing import Any

from maskattn.families.family import Stack
from maskattn.families.marian import MARIAN, stack


def learned(side: str, **changes: Any) -> Stack:
    """Marian's stack with positions and a norm of embeddings as in BART."""
    plain = stack(side)
    return replace(
        plain,
        positions="learned",
        position_offset=2,
        tensors={**plain.tensors, "positions": ("model.{side}.embed_positions.weight",)},
        modules={**plain.modules, "embed.norm": "model.{side}.layernorm_embedding", "norm": "model.{side}.layer_norm"},
        **changes,
    )


BART = replace(
    MARIAN,
    name="bart",
    tokenizer="RobertaTokenizer",
    encoder=learned("encoder"),
    decoder=learned("decoder"),
    defaults={**MARIAN.defaults, "decoder_start_token_id": 2},
    unused=("model.shared.weight", "model.*coder.version"),
)
