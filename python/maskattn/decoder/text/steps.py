"""Steps of tokenizers as tokenizer.json writes them, for those that are declared."""

from __future__ import annotations

from collections.abc import Callable

from maskattn.decoder.text.kinds import Json
from maskattn.decoder.text.template import Config, Template

#: Names of special tokens in models of fairseq.
FAIRSEQ = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"} | {
    "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip


def byte_level(config: Config, use_regex: bool = True) -> Json:
    prefix = bool(config.get("add_prefix_space", False))
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def metaspace(scheme: str = "always", split: bool = True) -> Json:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def sequence(kind: str, steps: list[Json]) -> Json:
    return {"type": "Sequence", kind: steps}


def replacement(pattern: Json, content: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def always(single: str, pair: str) -> Callable[[Config], Template]:
    return lambda config: Template(single, pair)
