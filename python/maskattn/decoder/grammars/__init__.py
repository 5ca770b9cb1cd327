"""Texts that follow a JSON schema, a regular expression or a grammar, by way of ``llguidance``."""

from maskattn.decoder.grammars.processor import grammar_processor
from maskattn.decoder.grammars.vocabulary import Vocabulary

__all__ = ["Vocabulary", "grammar_processor"]
