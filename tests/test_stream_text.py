"""Pieces of text: whole characters that stay, of tokenizers of every kind."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny_tokenizers as tiny
from maskattn.decoder.stream import Piece, Tokens
from maskattn.decoder.text import Tokenizer
from maskattn.decoder.text.graphemes import joined
from maskattn.decoder.text.incremental import IncrementalDecoder
from maskattn.decoder.text.reading import read_tokenizer
from maskattn.families import find

pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")
FILES = {**tiny.OLD_FILES, **tiny.JSON_FILES}
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
FLAG = "\U0001f1eb\U0001f1f7"
CHARACTERS = [
    *"aZ ,",
    "e\u0301",
    "o\u0302\u0323",
    "\u00e7",
    "\u6211",
    "\U0001f600",
    "\U0001f44d\U0001f3fd",
    "\u2764\ufe0f",
    FAMILY,
    FLAG,
    "\u1112\u1161\u11ab",
    "\ud55c",
    "\u0915\u094d\u0937\u093f",
    "\r\n",
    "\n",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "1\ufe0f\u20e3",
]


def read(name: str, path: Path) -> Tokenizer:
    family, files = FILES[name]
    tiny.write(path, files())
    tokenizer, problem = read_tokenizer(SimpleNamespace(directory=path, config={}), find(family))  # type: ignore[arg-type]
    assert tokenizer is not None, problem
    return tokenizer


def pieces(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str] = ()) -> list[Piece]:
    decoder = IncrementalDecoder(tokenizer, stops)
    return [decoder.add(Tokens([i])) for i in ids] + [decoder.finish()]


@pytest.mark.parametrize("name", FILES)
def test_pieces_are_the_text(name: str, tmp_path: Path) -> None:
    """Of any ids, so that characters end in the middle, bytes spoil one another, and spaces are cleaned up."""
    tokenizer = read(name, tmp_path)
    rng = np.random.default_rng(3)
    for _ in range(12):
        ids = rng.integers(0, tokenizer.vocab_size, rng.integers(1, 60)).tolist()
        shown = pieces(tokenizer, ids)
        assert "".join(shown) == tokenizer.decode(ids)
        assert not any(piece.retracted for piece in shown)


@pytest.mark.parametrize("name", ["gpt2", "llama, legacy", "t5", "marian", "llama 3", "bert", "whisper"])
def test_long_texts(name: str, tmp_path: Path) -> None:
    """Longer than the window that is decoded."""
    tokenizer = read(name, tmp_path)
    rng = np.random.default_rng(4)
    text = " ".join(tiny.LINES[i] for i in rng.integers(0, 6, 40))
    for ids in (tokenizer.encode(text)[:900], rng.integers(0, tokenizer.vocab_size, 700).tolist()):
        shown = pieces(tokenizer, ids)
        assert "".join(shown) == tokenizer.decode(ids)
        assert not any(piece.retracted for piece in shown)


@pytest.mark.parametrize("name", ["gpt2", "llama, legacy", "llama 3"])
def test_no_character_is_split(name: str, tmp_path: Path) -> None:
    """Every token is a byte or a few: what is shown ends between two characters all the same, a token late."""
    tokenizer = read(name, tmp_path)
    rng = np.random.default_rng(5)
    for _ in range(30):
        characters = [CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), 12)]
        text = "".join(characters)
        shown = pieces(tokenizer, tokenizer.encode(text, special_tokens=False))
        assert "".join(shown).strip() == text.strip()
        at, whole = 0, "".join(shown)
        for piece in shown:
            at += len(piece)
            assert at in (0, len(whole)) or not joined(whole, at), ascii(shown)
            assert "\ufffd" not in piece


def test_the_first_piece_comes_with_the_second_token(tmp_path: Path) -> None:
    tokenizer = read("llama 3", tmp_path)
    ids = tokenizer.encode("lower newest shown", special_tokens=False)
    shown = pieces(tokenizer, ids)
    assert shown[0] == ""
    assert shown[1] == tokenizer.decode(ids[:1])
    assert [len(piece) > 0 for piece in shown[1:]] == [True] * len(ids)


def test_what_may_become_a_stop_string_is_held_back(tmp_path: Path) -> None:
    tokenizer = read("gpt2", tmp_path)
    ids = tokenizer.encode("one <en two <end>", special_tokens=False)
    shown, seen = pieces(tokenizer, ids, ["<end>", "never"]), ""
    assert "".join(shown) == "one <en two <end>"
    for n, piece in enumerate(shown[:-1], 1):
        seen += piece
        begun = next((stop for stop in ("<end", "<en", "<e", "<") if tokenizer.decode(ids[:n]).endswith(stop)), "")
        assert not begun or len(seen) <= len(tokenizer.decode(ids[:n])) - len(begun)
    assert shown[-1].endswith("<end>")


def test_tokens_taken_back(tmp_path: Path) -> None:
    """As beams do, before and behind what the window begins with."""
    tokenizer = read("llama 3", tmp_path)
    rng = np.random.default_rng(6)
    for _ in range(5):
        decoder, ids, seen = IncrementalDecoder(tokenizer), [], ""
        for _ in range(150):
            new = Tokens(rng.integers(0, tokenizer.vocab_size, rng.integers(0, 5)).tolist())
            new.retracted = int(rng.integers(0, min(len(ids), 3) + 1)) if rng.random() < 0.9 else len(ids) // 2
            ids = ids[: len(ids) - new.retracted] + new
            piece = decoder.add(new)
            seen = seen[: len(seen) - piece.retracted] + piece
        piece = decoder.finish()
        assert seen[: len(seen) - piece.retracted] + piece == tokenizer.decode(ids)


def test_characters() -> None:
    """Whatever stands beside whatever: inside one nothing may be cut, and between two all is."""
    for first in CHARACTERS:
        assert all(joined(first, i) for i in range(1, len(first))), ascii(first)
        for second in CHARACTERS:
            if first + second not in ("\r\n", FLAG + FLAG) and not unicodedata.combining(second[0]):
                assert not joined(first + second, len(first)), ascii(first + second)
    assert [joined(FLAG + FLAG, i) for i in (1, 2, 3)] == [True, False, True]
