"""A tokenizer's tokens as ``llguidance`` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from maskattn.decoder.arrays import BoolArray, IntArray
from maskattn.decoder.text.protocol import Tokenizer

#: What closes something, the first rather than the others (in quotes the others are text); what opens something.
_CLOSING, _OPENING = b"\"'}])>;.", b"{[("
#: What puts tokens behind all others of other kinds, and behind those of their own.
_TRIED_KIND, _TRIED_TOKEN = 1e4, 1e6
#: The least worth of a token that closes something.
_CLOSES = 1000.0
#: How many choices are remembered: few masks differ, since most of a text is inside a word or a string.
_KEPT = 4096


def need() -> Any:
    """``llguidance``. Raises ImportError: it is not installed."""
    try:
        return import_module("llguidance")
    except ImportError:
        raise ImportError(
            "llguidance must be installed for json_schema, regex and grammar, got none; "
            'pip install "maskattn[constraints]"'
        ) from None


class Vocabulary:
    """What each token writes; made once per model, since it takes as long as many steps.

    Many SentencePiece tokenizers drop a space at the beginning of a text. So there each token that begins with one is
    in llguidance's vocabulary twice, and ``first`` says which of the two a token is that begins a text.

    Attributes:
        size: how many tokens the model writes.
        core: llguidance's tokenizer.
        first: shape (size,): the token that llguidance is told of where it is the first; -1: none, it writes nothing.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size, self._tokenizer = size, tokenizer
        written = tokenizer.token_bytes()
        self._bytes = [written.get(i, b"") for i in range(size)]
        self.first: IntArray = np.arange(size)
        twins: list[bytes] = []
        if self._drops_a_space():
            for i, token in enumerate(self._bytes):
                if token.startswith(b" "):
                    self.first[i] = size + len(twins) if token != b" " else -1
                    twins += [token[1:]] if token != b" " else []
        self._twins = twins
        self._worth = np.array([_worth(token) for token in self._bytes])
        self._kinds = np.array([_kind(token) for token in self._bytes])
        self._closing: dict[int, int] = {}  # by the hash of a mask

    @cached_property
    def core(self) -> Any:
        library = need()
        # The end is a token of its own here, since which ids end a text is an option of each call.
        tokens = [*self._bytes, *self._twins, b"<end>"]
        return library.LLTokenizer(library.TokenizerWrapper(_Tokens(tokens, self._tokenizer)))

    def mask(self, bits: bytes, *, at_begin: bool) -> BoolArray:
        """Shape (size,): which tokens may follow where llguidance's mask is ``bits``, of those that write something."""
        flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").view(np.bool_)
        if not at_begin:
            return flags[: self.size]
        allowed: BoolArray = flags[self.first]
        allowed[self.first < 0] = True
        return allowed

    def closing(self, bits: bytes, *, at_begin: bool, tried: Sequence[int] = ()) -> int | None:
        """The token by which to go on towards an end; None: nothing may follow.

        Args:
            tried: what has been written here before, in vain: another one, if possible of another kind, comes first.
        """
        key = hash(bits)
        if (
            not (tried or at_begin)
            and (token := self._closing.get(key)) is not None
            and bits[token >> 3] >> (token & 7) & 1
        ):
            return token
        worth = np.where(self.mask(bits, at_begin=at_begin), self._worth, -np.inf)
        if tried:
            worth[np.isin(self._kinds, self._kinds[list(tried)])] -= _TRIED_KIND
            worth[list(tried)] -= _TRIED_TOKEN
        found = int(worth.argmax())
        if worth[found] == -np.inf:
            return None
        if not (tried or at_begin):
            if len(self._closing) >= _KEPT:
                self._closing.clear()
            self._closing[key] = found
        return found

    def closes(self, token: int) -> bool:
        return bool(self._worth[token] >= _CLOSES)

    def _drops_a_space(self) -> bool:
        spaced = next((i for i, token in enumerate(self._bytes) if token[:1] == b" " and token[1:].isalpha()), None)
        return spaced is not None and not self._tokenizer.decode([spaced]).startswith(" ")


class _Tokens:
    """What ``llguidance.TokenizerWrapper`` asks for."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], tokenizer: Tokenizer) -> None:
        self.tokens, self.eos_token_id, self._tokenizer = tokens, len(tokens) - 1, tokenizer
        self.special_token_ids = [self.eos_token_id]
        self._longest = max(map(len, tokens))
        self._ids = {token: i for i, token in reversed(list(enumerate(tokens)))}

    def __call__(self, text: bytes) -> list[int]:
        """How a text is written that a grammar leaves no choice in: as the model knows it, where that can be told."""
        try:
            ids = self._tokenizer.encode(text.decode(), special_tokens=False)
        except UnicodeDecodeError:  # a part of a character
            return self._longest_first(text)
        if any(i >= self.eos_token_id for i in ids) or b"".join(self.tokens[i] for i in ids) != text:
            return self._longest_first(text)
        return ids

    def _longest_first(self, text: bytes) -> list[int]:
        ids, at = list[int](), 0
        while at < len(text):
            ends = range(min(self._longest, len(text) - at), 0, -1)
            end = next((at + n for n in ends if text[at : at + n] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[text[at:end]])
            at = end
        return ids


def _worth(token: bytes) -> float:
    """Larger for a token that is more likely to bring a text to an end."""
    if not token.strip():
        return 0.0
    if all(byte in _CLOSING for byte in token) and b'""' not in token:
        return _CLOSES + 10 * len(token) + 10 - _CLOSING.index(token[0])
    if token[0] in _OPENING:
        return 10.0
    if token[:1].isspace():
        return 20.0 + min(len(token), 50)
    return (500.0 if token.isdigit() else 100.0) + min(len(token), 50)


def _kind(token: bytes) -> int:
    """By the first byte: letters, digits, and each other character on its own."""
    if token[:1].isdigit():
        return ord("0")
    return ord("a") if token[:1].isalpha() or token[:1] >= b"\x80" else sum(token[:1])
