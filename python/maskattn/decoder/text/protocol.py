"""What a model asks of a tokenizer, and the libraries behind most of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Texts as token ids and back, as ``transformers``' tokenizer for the same files has them."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    def encode(self, text: str, *, language: str | None = None, special_tokens: bool = True) -> list[int]:
        """Ids of ``text`` as a source, with the special tokens that a model reads around it.

        Args:
            language: of ``text``, for a multilingual tokenizer; default: what tokenizer_config.json says.
            special_tokens: False leaves out what is not in ``text`` itself.
        """
        ...

    def encode_target(self, text: str, *, language: str | None = None) -> list[int]:
        """Ids of ``text`` as what a model writes."""
        ...

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Ids of two texts as one source, and the segment (token type) of each id."""
        ...

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of ``ids``, special tokens dropped unless they are asked for."""
        ...

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The token of each id, special ones included, for pictures."""
        ...

    def token_bytes(self) -> dict[int, bytes]:
        """What each token writes into a text, by its id, without special tokens; partial characters are bytes, too.

        Raises:
            ValueError: what a token writes depends on its neighbours.
        """
        ...

    def token_id(self, token: str) -> int | None:
        """The id of one token, None if there is no such token."""
        ...

    def language_token(self, language: str) -> str:
        """The token that stands for a language.

        Raises:
            ValueError: the tokenizer knows no such language, or no languages at all.
        """
        ...


def need(library: str) -> Any:
    """An optional library, imported.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(library)
    except ImportError:
        raise ImportError(
            f"{library} must be installed for the texts of this model, got none; "
            'pip install "maskattn[text]", or use the methods that take ids'
        ) from None
