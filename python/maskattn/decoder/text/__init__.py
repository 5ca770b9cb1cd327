"""Texts as token ids and back: tokenizers of every kind that checkpoints bring, and chat templates."""

from maskattn.decoder.text.characters import CharacterTokenizer
from maskattn.decoder.text.methods import TextMethods
from maskattn.decoder.text.protocol import Tokenizer
from maskattn.decoder.text.texts import Texts

__all__ = ["CharacterTokenizer", "TextMethods", "Texts", "Tokenizer"]
