"""The model families: one file of data each. A new family is its file and one import and one name here."""

from __future__ import annotations

from maskattn.families.family import Family, Head, Stack
from maskattn.families.gemma2 import GEMMA2
from maskattn.families.gpt2 import GPT2
from maskattn.families.gpt_neox import GPT_NEOX
from maskattn.families.llama import LLAMA
from maskattn.families.marian import MARIAN
from maskattn.families.mistral import MISTRAL
from maskattn.families.opt import OPT
from maskattn.families.phi3 import PHI3
from maskattn.families.qwen2 import QWEN2
from maskattn.families.qwen3 import QWEN3

_ALL = (GEMMA2, GPT2, GPT_NEOX, LLAMA, MARIAN, MISTRAL, OPT, PHI3, QWEN2, QWEN3)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

__all__ = ["FAMILIES", "Family", "Head", "Stack", "find"]


def find(model_type: object) -> Family:
    """The family that config.json names in ``model_type``.

    Raises:
        ValueError: no such family; the message lists all known ones.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise ValueError(
        f"model_type must be a known family ({', '.join(sorted(FAMILIES))}), got {model_type!r}; "
        "convert the checkpoint, or declare the family in maskattn/families"
    )
