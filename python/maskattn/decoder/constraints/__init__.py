"""Texts that follow a JSON schema, a regular expression or a grammar, by way of ``llguidance``."""

from maskattn.decoder.constraints.processor import constraint
from maskattn.decoder.constraints.vocabulary import Vocabulary

__all__ = ["Vocabulary", "constraint"]
