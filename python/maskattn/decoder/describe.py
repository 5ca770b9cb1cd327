"""What a checkpoint is, from its config and the headers of its files; no weights are read."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from maskattn.decoder.heads import find_head
from maskattn.decoder.loading import open_checkpoint
from maskattn.decoder.settings import Settings, check_variant
from maskattn.decoder.text.chat import ChatTemplates
from maskattn.decoder.text.reading import tokenizer_name
from maskattn.families import FAMILIES, Family, find


def families() -> dict[str, list[str]]:
    """The known families by what they are made of."""
    kinds: dict[str, list[str]] = {"encoder-decoder": [], "decoder-only": [], "encoder-only": []}
    for name, family in sorted(FAMILIES.items()):
        kinds[_kind(family)].append(name)
    return kinds


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Family, sizes, weights and uses of a checkpoint.

    Args:
        path: as in ``load``.

    Returns:
        What can be written as JSON.

    Raises:
        As ``load``, but for what is wrong with the tensors.
    """
    checkpoint = open_checkpoint(path)
    family = find(checkpoint.config.get("model_type"))
    config = {**family.defaults, **checkpoint.config}
    check_variant(family, config)
    facts: dict[str, Any] = {"family": family.name, "kind": _kind(family)}
    for side, stack in (("encoder", family.encoder), ("decoder", family.decoder)):
        if stack is not None:
            sizes = asdict(Settings(family.name, side, stack, config).sizes)
            facts[side] = {name: size for name, size in sizes.items() if size}
    stored = checkpoint.stored()
    facts["parameters"] = sum(stored.values())
    facts["dtypes"] = sorted(stored)
    facts["tokenizer"] = tokenizer_name(checkpoint, family) or "none"
    templates = ChatTemplates.find(checkpoint.directory, {})
    facts["uses"] = _uses(family, config, has_template=templates is not None)
    return facts


def _kind(family: Family) -> str:
    if family.decoder is None:
        return "encoder-only"
    return "decoder-only" if family.encoder is None else "encoder-decoder"


def _uses(family: Family, config: dict[str, Any], *, has_template: bool) -> list[str]:
    """The methods of ``Model`` that it is for."""
    uses = [] if family.decoder is None else ["generate", "score"]
    if family.encoder is None and has_template:
        uses.append("chat")
    uses += [] if family.encoder is None else ["encode"]
    if family.encoder is not None and family.encoder.inputs == "sound":
        uses.append("transcribe")
    if find_head(family, config) is not None:
        uses.append("classify")
    return uses
