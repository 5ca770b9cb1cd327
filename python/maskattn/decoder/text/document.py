"""From the files of a checkpoint to one document as in tokenizer.json, which the ``tokenizers`` library reads."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from maskattn.decoder.checkpoint import read_json
from maskattn.decoder.text.kinds import Json, Pipeline
from maskattn.decoder.text.piece_model import PieceModel, read_piece_model
from maskattn.decoder.text.special import SpecialTokens
from maskattn.decoder.text.template import Config

FILE = "tokenizer.json"
#: Tokens that a SentencePiece model brings along: (text, whether it is special).
PieceTokens = list[tuple[str, bool]]


def rebuild(file: Json, pipeline: Pipeline, tokens: SpecialTokens) -> Json | None:
    """tokenizer.json's vocabulary under a class's pipeline; None if it is of another algorithm."""
    model = file.get("model")
    if not isinstance(model, dict) or model.get("type", pipeline.model["type"]) != pipeline.model["type"]:
        return None
    document = _document(pipeline, tokens, model.get("vocab"), model.get("merges"), _rules_of(file.get("normalizer")))
    return {**document, "post_processor": file.get("post_processor")}


def from_vocab(directory: Path, pipeline: Pipeline, tokens: SpecialTokens) -> Json:
    """From vocab.json and merges.txt, or vocab.txt.

    Raises:
        ValueError: a file is not what its name says.
    """
    if pipeline.files == ("vocab.txt",):
        lines = _lines(directory, "vocab.txt")
        return _document(pipeline, tokens, {line.rstrip(): i for i, line in enumerate(lines)}, None, [])
    vocab = read_vocab(directory, "vocab.json")
    merges = [line.split(" ") for line in _lines(directory, "merges.txt") if not line.startswith("#version")]
    for merge in merges:
        if len(merge) != 2:
            raise ValueError(f"merges.txt must have two tokens a line, got {' '.join(merge)!r:.60}; download it again")
    return _document(pipeline, tokens, vocab, merges, [])


def from_pieces(directory: Path, pipeline: Pipeline, tokens: SpecialTokens) -> tuple[Json, PieceTokens]:
    """From a SentencePiece model; also its control tokens and the pieces that users of SentencePiece defined.

    Raises:
        ValueError: the file is not a SentencePiece model.
    """
    model = read_piece_model(directory / pipeline.files[0])
    special = [(piece, True) for piece in model.control] + [(piece, False) for piece in model.user_defined]
    first, last = (
        [tokens.texts.get(word, word) for word in words(tokens.config)] for words in (pipeline.first, pipeline.last)
    )
    pieces = [(text, 0.0) for text in first] + model.pieces[pipeline.skipped :] + [(text, 0.0) for text in last]
    rules = [_rules(base64.b64encode(model.charsmap).decode())] if model.charsmap else []
    if pipeline.model["type"] == "Unigram":
        return _document(pipeline, tokens, pieces, None, rules), special
    vocab: dict[str, int] = {}
    for text, _ in pieces:
        vocab.setdefault(text, len(vocab))
    return _document(pipeline, tokens, vocab, _merges(model), rules), special


def read_vocab(directory: Path, name: str) -> dict[str, int]:
    """Raises ValueError unless the file gives each token an id."""
    vocab = read_json(directory, name)
    for token, i in vocab.items():
        if not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise ValueError(f"{name} must give each token an id from 0 on, got {i!r:.40} for {token!r:.40}")
    return vocab


def _document(pipeline: Pipeline, tokens: SpecialTokens, vocab: Any, merges: Any, rules: list[Json]) -> Json:
    config: Config = tokens.config
    model = {**pipeline.model, "vocab": vocab}
    if model["type"] == "BPE":
        model["merges"] = merges or []
    if "unk_token" in model:
        model["unk_token"] = tokens.texts.get(model["unk_token"])
    if model.get("unk_id", 0) is None:
        model["unk_id"] = _place(vocab, tokens.texts.get("unk_token"))
    normalizers = pipeline.normalizers(config, rules)
    several = {"type": "Sequence", "normalizers": normalizers}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None if not normalizers else normalizers[0] if len(normalizers) == 1 else several,
        "pre_tokenizer": pipeline.pre_tokenizer(config),
        "post_processor": None,
        "decoder": pipeline.decoder(config),
        "model": model,
    }


def _place(vocab: Any, token: str | None) -> int:
    for i, entry in enumerate(vocab if isinstance(vocab, list) else []):
        if isinstance(entry, list | tuple) and entry and entry[0] == token:
            return i
    raise ValueError(f"the tokenizer's vocabulary must have the unknown token, got no {token!r}; download it again")


def _rules(charsmap: str) -> Json:
    return {"type": "Precompiled", "precompiled_charsmap": charsmap}


def _rules_of(normalizer: object) -> list[Json]:
    """A SentencePiece model's rules of normalisation, where a tokenizer.json has them."""
    if not isinstance(normalizer, dict):
        return []
    steps = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
    found = [step for step in steps or [] if isinstance(step, dict) and step.get("precompiled_charsmap")]
    return [_rules(found[0]["precompiled_charsmap"])] if found else []


def _merges(model: PieceModel) -> list[tuple[str, str]]:
    """The pairs that make up each piece, the pieces in the order of their ids: how SentencePiece's BPE numbers them."""
    ids = {text: i for i, (text, _) in enumerate(model.pieces)}
    found = []
    for text, i in ids.items():
        cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
        pairs = sorted(
            (pair for pair in cuts if pair[0] in ids and pair[1] in ids), key=lambda p: (ids[p[0]], ids[p[1]])
        )
        found += [(i, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in found]


def _lines(directory: Path, name: str) -> list[str]:
    """Not ``splitlines``: a token may be one of the characters that end a line elsewhere."""
    try:
        text = (directory / name).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be UTF-8 text, got {error}; download it again") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
