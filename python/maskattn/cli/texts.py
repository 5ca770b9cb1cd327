"""``maskattn generate`` and ``score``: texts in, texts or log-probabilities out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from maskattn.cli import common

if TYPE_CHECKING:
    from maskattn.decoder import Model


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser("generate", help="write a text for each text; without a model: dates in ISO 8601")
    generate.add_argument("texts", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    common.add_model(generate, "default: the embedded date model")
    generate.add_argument("--weights", action="store_true", help="also the cross-attention, source against produced")
    common.add_generation(generate)
    generate.set_defaults(run=_generate)

    score = commands.add_parser("score", help="log-probability of each target, given its source")
    score.add_argument("pairs", nargs="*", metavar="SOURCE TARGET", help="default: lines SOURCE<tab>TARGET")
    common.add_model(score, "default: the embedded date model")
    score.set_defaults(run=_score)


def _generate(options: argparse.Namespace) -> None:
    texts, settings = common.lines(options.texts), common.generation_options(options)
    model = common.load(options)
    with common.progress(len(texts)) as show:
        outputs = model.generate(texts, progress=show, **settings)
    for text, output in zip(texts, outputs, strict=True):
        if options.json:
            common.print_json(_record(model, text, output, options.weights))
            continue
        print(output)
        if options.weights:
            print(_picture(model, text, output))


def _record(model: Model, text: str, output: str, with_weights: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"source": text, "output": output}
    if with_weights:
        weights, produced, source = _cross_attention(model, text, output)
        record |= {"source_tokens": source, "output_tokens": produced, "weights": weights.round(6).tolist()}
    return record


def _picture(model: Model, text: str, output: str) -> str:
    from maskattn.alignment import draw_alignment

    weights, produced, source = _cross_attention(model, text, output)
    return draw_alignment(weights, source, produced)


def _cross_attention(model: Model, text: str, output: str) -> tuple[Any, list[str], list[str]]:
    """Weights (produced, source), the mean over layers and heads, and the tokens that name its rows and columns."""
    assert model.tokenizer is not None  # generate has used it
    source, target = model.tokenizer.encode(text), model.tokenizer.encode_target(output)
    weights = model.cross_attention(source, target).mean(axis=(0, 1))
    return weights, model.tokenizer.tokens(target), model.tokenizer.tokens(source)


def _score(options: argparse.Namespace) -> None:
    if options.pairs:
        if len(options.pairs) % 2:
            raise ValueError(f"score must get pairs SOURCE TARGET, got {len(options.pairs)} texts; quote each")
        pairs = list(zip(options.pairs[::2], options.pairs[1::2], strict=True))
    else:
        pairs = [_pair(line) for line in common.lines([])]
    model = common.load(options)
    with common.progress(len(pairs)) as show:
        scores = model.score([source for source, _ in pairs], [target for _, target in pairs], progress=show)
    for (source, target), values in zip(pairs, scores, strict=True):
        total = float(values.sum(dtype=float))
        if options.json:
            record = {"source": source, "target": target, "log_probability": total, "tokens": values.tolist()}
            common.print_json(record)
        else:
            print(f"{total:.4f}\t{source}\t{target}")


def _pair(line: str) -> tuple[str, str]:
    source, tab, target = line.partition("\t")
    if not tab or not target:
        raise ValueError(f"score must get lines SOURCE<tab>TARGET, got {line!r:.60}; put a tab between them")
    return source, target
