"""Tokens as words, by rules that ``transformers`` and openai-whisper share."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass

from maskattn.decoder.text.graphemes import joined

#: Codes of languages that are written without spaces: there a word is a token, or as many as make a character.
SPACELESS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
#: What belongs to the word behind it if a space stands before it, and what belongs to the word before it.
_OPENING, _CLOSING = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001


@dataclass(frozen=True)
class Part:
    """A stretch of text: tokens ``first`` .. ``end - 1``."""

    text: str
    first: int
    end: int

    def __add__(self, other: Part) -> Part:
        return Part(self.text + other.text, self.first, other.end)


def split(written: Sequence[bytes], *, spaces: bool) -> list[Part]:
    """The words of a text, whose texts together are the whole.

    Args:
        written: what each token writes, in UTF-8.
        spaces: whether spaces separate words.
    """
    words = whole_characters(written)
    if spaces:
        words = _at_spaces(words)
    return _with_punctuation(words)


def whole_characters(written: Sequence[bytes]) -> list[Part]:
    """Tokens one by one, but for those that have parts of the same character (as a reader sees it)."""
    decoder = getincrementaldecoder("utf-8")("replace")
    parts, start = list[Part](), 0
    text = ""
    for i, content in enumerate(written, 1):
        text += decoder.decode(content, final=i == len(written))
        if decoder.getstate()[0]:  # the beginning of a character
            continue
        before = parts[-1].text if parts else ""
        if before and text and joined(before + text, len(before)):
            parts[-1] += Part(text, start, i)
        else:
            parts.append(Part(text, start, i))
        text, start = "", i
    return parts


def _at_spaces(parts: Sequence[Part]) -> list[Part]:
    words = list[Part]()
    for part in parts:
        if not words or part.text.startswith(" ") or part.text.strip() in _PUNCTUATION:
            words.append(part)
        else:
            words[-1] += part
    return words


def _with_punctuation(parts: Sequence[Part]) -> list[Part]:
    """Marks joined to the words that they open or close."""
    backwards = list[Part]()
    for part in reversed(parts):
        if backwards and part.text.startswith(" ") and part.text.strip() in _OPENING:
            backwards[-1] = part + backwards[-1]
        else:
            backwards.append(part)
    words = list[Part]()
    for part in reversed(backwards):
        if words and not words[-1].text.endswith(" ") and part.text in _CLOSING:
            words[-1] += part
        else:
            words.append(part)
    return words
