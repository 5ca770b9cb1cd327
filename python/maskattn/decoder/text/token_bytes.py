"""What each token writes, byte for byte, for those who follow a text while it is being written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from maskattn.decoder.text.kinds import Json

#: What SentencePiece writes for a space.
SPACE = "▁"
#: A byte as a token of its own.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: Steps of a decoder that join tokens, or trim the ends of a text, and change no token otherwise.
_HARMLESS = ("ByteLevel", "ByteFallback", "Metaspace", "Fuse", "Strip", "Replace")


def piece_bytes(token: str, *, space: str = SPACE, byte_fallback: bool = False) -> bytes:
    """Of a SentencePiece token."""
    if byte_fallback and (byte := _BYTE.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.replace(space, " ").encode()


def fast_bytes(vocab: Mapping[str, int], decoder: Json | None) -> dict[int, bytes]:
    """Of the vocabulary of tokenizer.json, whose part ``decoder`` says how tokens become a text.

    Raises:
        ValueError: tokens do not stand for bytes, as those of WordPiece.
    """
    steps = {step.get("type"): step for step in _steps(decoder)}
    if not steps or not set(steps).issubset(_HARMLESS):
        found = ", ".join(sorted(map(str, steps))) or "none"
        raise ValueError(
            f"the tokenizer must write tokens one behind the other to be followed, got decoder {found}; "
            "use a model with a byte-level or SentencePiece tokenizer"
        )
    if "ByteLevel" in steps:
        bytes_of = {character: byte for byte, character in byte_level_characters().items()}
        # What is not written in this alphabet can only have been added as it stands.
        return {
            i: bytes(map(bytes_of.__getitem__, token)) if bytes_of.keys() >= set(token) else token.encode()
            for token, i in vocab.items()
        }
    space = steps.get("Metaspace", {}).get("replacement", SPACE)
    return {i: piece_bytes(t, space=space, byte_fallback="ByteFallback" in steps) for t, i in vocab.items()}


def byte_level_characters() -> dict[int, str]:
    """GPT-2's alphabet: a printable character for each byte, its own where it has one."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _steps(decoder: Any) -> Iterator[Json]:
    if isinstance(decoder, dict):
        if decoder.get("type") == "Sequence":
            for part in decoder.get("decoders", []):
                yield from _steps(part)
        else:
            yield decoder
