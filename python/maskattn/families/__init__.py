"""The model families: one file of data each. A new family is its file and one import and one name here."""

from __future__ import annotations

from maskattn.families.family import Family
from maskattn.families.marian import MARIAN

FAMILIES: dict[str, Family] = {family.name: family for family in (MARIAN,)}

__all__ = ["FAMILIES", "Family", "find"]


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
