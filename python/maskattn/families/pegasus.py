"""Pegasus (arXiv:1912.08777): Marian with norms before branches and one more behind each stack."""

from dataclasses import replace

from maskattn.families.family import Stack
from maskattn.families.marian import MARIAN, stack


def pre_norm(side: str) -> Stack:
    plain = stack(side)
    return replace(
        plain, placement="pre", final_norm=True, modules={**plain.modules, "norm": "model.{side}.layer_norm"}
    )


PEGASUS = replace(
    MARIAN,
    name="pegasus",
    tokenizer="PegasusTokenizer",
    encoder=pre_norm("encoder"),
    decoder=pre_norm("decoder"),
    defaults={**MARIAN.defaults, "decoder_start_token_id": 0},
)
