"""What tokenizers of subwords have in common: special tokens around texts, and languages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from maskattn.decoder import check
from maskattn.decoder.text.kinds import Kind
from maskattn.decoder.text.special import SpecialTokens
from maskattn.decoder.text.template import Template


class Subwords(ABC):
    """A :class:`~maskattn.decoder.text.protocol.Tokenizer`, but for how a text is cut and joined.

    Args:
        template: what stands around texts.
    """

    def __init__(self, kind: Kind, tokens: SpecialTokens, template: Template) -> None:
        self._kind, self._special, self._template = kind, tokens, template

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @abstractmethod
    def cut(self, text: str, *, target: bool = False) -> list[int]:
        """Ids of ``text`` alone, as a source or as a target."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str: ...

    @abstractmethod
    def tokens(self, ids: Sequence[int]) -> list[str]: ...

    @abstractmethod
    def token_bytes(self) -> dict[int, bytes]: ...

    @abstractmethod
    def token_id(self, token: str) -> int | None: ...

    def encode(self, text: str, *, language: str | None = None, special_tokens: bool = True) -> list[int]:
        ids = self.cut(text)
        if not special_tokens:
            return ids
        return self._around(ids, self._language(language, "src_lang"))[0]

    def encode_target(self, text: str, *, language: str | None = None) -> list[int]:
        language = language or self._special.config.get("tgt_lang")
        return self._around(self.cut(text, target=True), self._language(language, "src_lang"))[0]

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        return self._around(self.cut(first), self._language(None, "src_lang"), self.cut(second))

    def language_token(self, language: str) -> str:
        known = self._kind.languages
        if known is None:
            raise ValueError(
                f"src_lang and tgt_lang must be None for a tokenizer without languages, got {language!r}; "
                "write the language into the text, if the model wants it there"
            )
        check.unicode("src_lang and tgt_lang", str(language))
        token = known.token.format(language)
        codes = known.known(self._special.config.get("language_codes"))
        special = {extra["content"] for extra in self._special.extra or []}
        if self.token_id(token) is None or (language not in codes and token not in special):
            raise ValueError(f"src_lang and tgt_lang must be one of {', '.join(codes)}, got {language!r}")
        return token

    def _language(self, language: str | None, key: str) -> str | None:
        """The token of the source's language, or None for a tokenizer without languages."""
        if self._kind.languages is None:
            return None if language is None else self.language_token(language)
        return self.language_token(language or self._special.config.get(key) or self._kind.languages.default)

    def _around(
        self, first: list[int], language: str | None, second: list[int] | None = None
    ) -> tuple[list[int], list[int]]:
        texts = {**self._special.texts, "language": language or ""}

        def token_id(word: str) -> int:
            i = self.token_id(texts.get(word, word))
            if i is None:
                raise ValueError(
                    f"the vocabulary must have {texts.get(word, word)!r}, which stands around each text, got none; "
                    "take all files of the tokenizer from the same checkpoint"
                )
            return i

        return self._template.fill(token_id, first, second)
