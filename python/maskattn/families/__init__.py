"""The model families: one file of data each. A new family is its file and one import and one name here."""

from __future__ import annotations

from maskattn.families.bart import BART
from maskattn.families.bert import BERT
from maskattn.families.distilbert import DISTILBERT
from maskattn.families.family import Family, Head, Stack
from maskattn.families.gemma2 import GEMMA2
from maskattn.families.gpt2 import GPT2
from maskattn.families.gpt_neox import GPT_NEOX
from maskattn.families.llama import LLAMA
from maskattn.families.m2m_100 import M2M_100
from maskattn.families.marian import MARIAN
from maskattn.families.mbart import MBART
from maskattn.families.mistral import MISTRAL
from maskattn.families.mt5 import MT5
from maskattn.families.opt import OPT
from maskattn.families.pegasus import PEGASUS
from maskattn.families.phi3 import PHI3
from maskattn.families.qwen2 import QWEN2
from maskattn.families.qwen3 import QWEN3
from maskattn.families.roberta import ROBERTA, XLM_ROBERTA
from maskattn.families.t5 import T5
from maskattn.families.whisper import WHISPER

_ENCODER_DECODER = (BART, M2M_100, MARIAN, MBART, MT5, PEGASUS, T5, WHISPER)
_ENCODER_ONLY = (BERT, DISTILBERT, ROBERTA, XLM_ROBERTA)
_DECODER_ONLY = (GEMMA2, GPT2, GPT_NEOX, LLAMA, MISTRAL, OPT, PHI3, QWEN2, QWEN3)
FAMILIES: dict[str, Family] = {
    family.name: family for families in (_ENCODER_DECODER, _ENCODER_ONLY, _DECODER_ONLY) for family in families
}

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
