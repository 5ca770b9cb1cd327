"""``maskattn classify``: the label of each text or pair of texts, or of each of its tokens."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from maskattn.cli import common

if TYPE_CHECKING:
    from maskattn.decoder import Model


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    classify = commands.add_parser("classify", help="the label of each text, by a model with a head for classes")
    classify.add_argument("texts", nargs="*", metavar="TEXT", help="TEXT or FIRST<tab>SECOND; default: lines of stdin")
    common.add_model(classify, "required")
    classify.set_defaults(run=_classify)


def _classify(options: argparse.Namespace) -> None:
    model = common.load_named(options, "of a model with a head for classes")
    texts = common.lines(options.texts)
    pairs = [tuple(text.split("\t", 1)) for text in texts]
    if len({len(pair) for pair in pairs}) > 1:
        raise ValueError("classify must get texts or FIRST<tab>SECOND in all lines, got both")
    sources: Any = pairs if "\t" in "".join(texts) else texts
    with common.progress(len(texts)) as show:
        scores = model.classify(sources, progress=show)
    for source, row in zip(sources, scores, strict=True):
        if row.ndim == 2:
            _print_tokens(model, source, row, options.json)
        else:
            _print_text(model, source, row, options.json)


def _print_text(model: Model, source: Any, scores: Any, as_json: bool) -> None:
    probabilities = _probabilities(model, scores)
    named = dict(zip(model.labels, probabilities.tolist(), strict=True))
    best = max(named, key=named.__getitem__)
    text = source if isinstance(source, str) else "\t".join(source)
    if as_json:
        common.print_json({"text": source, "label": best, "scores": named})
    else:
        print(f"{best}\t{named[best]:.4f}\t{text}")


def _print_tokens(model: Model, source: Any, scores: Any, as_json: bool) -> None:
    assert model.tokenizer is not None  # classify has used it
    ids = model.tokenizer.encode(source) if isinstance(source, str) else model.tokenizer.encode_pair(*source)[0]
    labels = [model.labels[i] for i in scores.argmax(axis=-1)]
    tokens = list(zip(model.tokenizer.tokens(ids), labels, strict=True))
    if as_json:
        common.print_json({"text": source, "tokens": [{"token": token, "label": label} for token, label in tokens]})
    else:
        print(" ".join(f"{token}/{label}" for token, label in tokens))


def _probabilities(model: Model, scores: Any) -> Any:
    """As ``transformers``' text-classification pipeline says it, by config.json's problem_type.

    One label of several, labels each by itself (as is a single one), or the numbers of a regression.
    """
    kind = model.config.get("problem_type")
    if kind == "regression":
        return scores
    if kind == "multi_label_classification" or len(scores) == 1:
        small = np.exp(-np.abs(scores))  # never overflows
        return np.where(scores >= 0, 1, small) / (1 + small)
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
