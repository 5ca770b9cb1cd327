"""SentencePiece model files, as far as the ``tokenizers`` library needs them: pieces, scores, normalisation.

The file is a protocol buffer message (sentencepiece_model.proto): a sequence of fields, each a number and a kind in one
varint and then the value (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Field numbers of sentencepiece_model.proto.
_PIECES, _NORMALIZER = 1, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_CHARSMAP = 2
#: Types of pieces that are matched as a whole: control tokens and user-defined ones.
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True)
class PieceModel:
    """Pieces in the order of their ids, with their scores.

    Attributes:
        control, user_defined: pieces that are never cut; control tokens stand in no text.
        charsmap: the compiled rules of normalisation, empty if there are none.
    """

    pieces: list[tuple[str, float]]
    control: list[str]
    user_defined: list[str]
    charsmap: bytes


def read_piece_model(path: Path) -> PieceModel:
    """Raises ValueError, which names the file, if it is not a SentencePiece model."""
    model = PieceModel([], [], [], b"")
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECES and isinstance(value, bytes):
                _add_piece(model, value)
            elif number == _NORMALIZER and isinstance(value, bytes):
                maps = [v for n, v in _fields(value) if n == _CHARSMAP and isinstance(v, bytes)]
                model = PieceModel(model.pieces, model.control, model.user_defined, maps[-1] if maps else b"")
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path.name} must be a SentencePiece model, got {error}; download it again") from error
    if not model.pieces:
        raise ValueError(f"{path.name} must be a SentencePiece model, got a file without pieces; download it again")
    return model


def _add_piece(model: PieceModel, message: bytes) -> None:
    piece, score, kind = "", 0.0, 1
    for number, value in _fields(message):
        if number == _PIECE and isinstance(value, bytes):
            piece = value.decode()
        elif number == _SCORE and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == _TYPE and isinstance(value, int):
            kind = value
    model.pieces.append((piece, score))
    if kind in (_CONTROL, _USER_DEFINED):
        (model.control if kind == _CONTROL else model.user_defined).append(piece)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an integer, or the bytes of anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {at} of {len(data)}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise ValueError(f"an end inside a number at byte {at}")
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError(f"a number of more than 64 bits at byte {at}")
