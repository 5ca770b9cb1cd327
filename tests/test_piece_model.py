"""The reader of SentencePiece files against the definition of their format, and against any bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskattn.decoder.text.piece_model import read_piece_model


def varint(value: int) -> bytes:
    made = b""
    while True:
        value, low = value >> 7, value & 127
        made += bytes([low | (128 if value else 0)])
        if not value:
            return made


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


pieces = st.lists(st.tuples(st.text(max_size=5), st.floats(width=32, allow_nan=False), st.integers(1, 6)), min_size=1)


@given(pieces=pieces, charsmap=st.binary(max_size=20))
def test_sentencepiece_files(tmp_path_factory: pytest.TempPathFactory, pieces: Any, charsmap: bytes) -> None:
    """Written by the definition of the format, with fields that we skip."""
    path = tmp_path_factory.mktemp("spm") / "x.model"
    data = b"".join(
        field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + varint(3 << 3) + varint(kind))
        for text, score, kind in pieces
    )
    path.write_bytes(
        data + field(2, b"ignored") + field(3, field(1, b"name") + field(2, charsmap)) + varint(9 << 3 | 1) + b"8" * 8
    )
    model = read_piece_model(path)
    assert model.pieces == [(text, score) for text, score, _ in pieces]
    assert (model.control, model.user_defined) == tuple([t for t, _, k in pieces if k == kind] for kind in (3, 4))
    assert model.charsmap == charsmap


@given(data=st.binary(max_size=60))
def test_any_bytes_are_no_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("spm") / "x.model"
    path.write_bytes(data)
    try:
        assert read_piece_model(path).pieces
    except ValueError as error:
        assert str(error).startswith("x.model must be a SentencePiece model, got ")  # noqa: PT017 - or it is whole
