"""Where a character, as a reader sees it, ends and the next begins: the grapheme clusters of UAX 29, in short."""

from __future__ import annotations

import unicodedata

_MARKS = ("Mn", "Mc", "Me")
_JOINER = "\u200d"
#: Joins what stands before it although it is no mark: (non-)joiners, skin tones, the letters of flags spelt in tags.
_EXTENDING = ((0x200C, 0x200D), (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F), (0xFF9E, 0xFF9F))
_REGIONAL = (0x1F1E6, 0x1F1FF)
#: Signs whose marks may join two consonants.
_VIRAMA = 9


def joined(text: str, at: int) -> bool:
    """Whether ``text[at]`` continues the character that ends at ``text[at - 1]``; 0 < at < len(text)."""
    before, after = text[at - 1], text[at]
    if before == "\r":
        return after == "\n"
    if unicodedata.category(before) == "Cc" or unicodedata.category(after) == "Cc":
        return False
    if unicodedata.category(after) in _MARKS or any(low <= ord(after) <= high for low, high in _EXTENDING):
        return True
    if before == _JOINER or unicodedata.combining(before) == _VIRAMA:
        return True
    if _is_in(before, _REGIONAL) and _is_in(after, _REGIONAL):  # flags are pairs
        return _run_before(text, at) % 2 == 1
    return _joins_syllable(before, after)


def _run_before(text: str, at: int) -> int:
    start = at
    while start and _is_in(text[start - 1], _REGIONAL):
        start -= 1
    return at - start


def _joins_syllable(before: str, after: str) -> bool:
    """Of Hangul, spelt in its letters: leading ones, vowels, trailing ones."""
    first, second = _hangul(before), _hangul(after)
    return (first, second) in (("L", "L"), ("L", "V"), ("L", "S"), ("V", "V"), ("V", "T"), ("T", "T")) or (
        first == "S" and second in ("V", "T")
    )


def _hangul(character: str) -> str:
    code = ord(character)
    kinds = (("L", 0x1100, 0x115F), ("V", 0x1160, 0x11A7), ("T", 0x11A8, 0x11FF), ("S", 0xAC00, 0xD7A3))
    return next((kind for kind, low, high in kinds if low <= code <= high), "")


def _is_in(character: str, codes: tuple[int, int]) -> bool:
    return codes[0] <= ord(character) <= codes[1]
