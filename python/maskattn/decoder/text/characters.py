"""A token per character: the tokenizer of the embedded date model, which needs no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class CharacterTokenizer:
    """One token per character, an end token behind them; what the vocabulary lacks becomes the unknown token.

    Args:
        vocab: token -> id; single characters, and the three special tokens.
        lower: lower-case texts (``do_lower_case``).
        unk_token, eos_token, pad_token: names of the special tokens in ``vocab``.

    Raises:
        ValueError: ``vocab`` lacks a special token, an id is not an integer of its own, or a token is neither special
            nor a character.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        lower: bool = False,
        unk_token: str = "<unk>",
        eos_token: str = "</s>",
        pad_token: str = "<pad>",
    ) -> None:
        special = (unk_token, eos_token, pad_token)
        for token in special:
            if token not in vocab:
                raise ValueError(f"vocab.json must have the token {token!r}, got none; add it with an id of its own")
        if any(not isinstance(i, int) or isinstance(i, bool) for i in vocab.values()) or len(set(vocab.values())) < len(
            vocab
        ):
            raise ValueError("vocab.json must give each token an integer of its own, got others; write it again")
        if long := [token for token in vocab if len(token) != 1 and token not in special]:
            raise ValueError(
                f"vocab.json must hold single characters besides {', '.join(special)}, got {long[0]!r}; "
                "name another tokenizer_class in tokenizer_config.json"
            )
        self._ids = dict(vocab)
        self._lower = lower
        self._unk, self._eos = vocab[unk_token], vocab[eos_token]
        self._tokens = {i: token for token, i in vocab.items()}
        self._special = {vocab[token] for token in special}

    @classmethod
    def read(cls, vocab: Mapping[str, int], config: Mapping[str, Any]) -> CharacterTokenizer:
        """From the contents of vocab.json and tokenizer_config.json."""
        names = {key: config[key] for key in ("unk_token", "eos_token", "pad_token") if key in config}
        return cls(vocab, lower=bool(config.get("do_lower_case", False)), **names)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokens) + 1

    def encode(self, text: str, *, language: str | None = None, special_tokens: bool = True) -> list[int]:
        """Ids of the characters of ``text`` and the end token; white space is one space, and none at either end."""
        if language is not None:
            self.language_token(language)
        text = " ".join(text.split())
        ids = [self._ids.get(c, self._unk) for c in (text.lower() if self._lower else text)]
        return [*ids, self._eos] if special_tokens else ids

    def encode_target(self, text: str, *, language: str | None = None) -> list[int]:
        """As :meth:`encode`: both sides have one vocabulary."""
        return self.encode(text, language=language)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Each text with its end token, the second in segment 1."""
        one, two = self.encode(first), self.encode(second)
        return one + two, [0] * len(one) + [1] * len(two)

    def token_bytes(self) -> dict[int, bytes]:
        """The bytes of each character, by its id."""
        return {i: token.encode() for i, token in self._tokens.items() if i not in self._special}

    def token_id(self, token: str) -> int | None:
        """The id of a character or a special token; None: it has none."""
        return self._ids.get(token)

    def language_token(self, language: str) -> str:
        """Raises ValueError: characters are of no language."""
        raise ValueError(
            f"src_lang and tgt_lang must be None for a tokenizer without languages, got {language!r}; leave them out"
        )

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The token of each id, special ones included, for pictures.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        for i in ids:
            if i not in self._tokens:
                raise ValueError(f"ids must be in vocab.json, got {i}; use the vocab.json of the model that made them")
        return [self._tokens[i] for i in ids]

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of ``ids``, special tokens dropped unless they are asked for.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        return "".join(self.tokens([i for i in ids if special_tokens or i not in self._special]))

    def __repr__(self) -> str:
        return f"CharacterTokenizer({len(self._ids)} tokens)"
