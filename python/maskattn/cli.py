"""The command ``maskattn``: generate text, draw a mask, say what the build can do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maskattn.version import __version__

if TYPE_CHECKING:
    from maskattn.decoder import Model
    from maskattn.masks.view import View

_MANY_LINES = 100  # from here on a progress bar is worth its line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 after an error that is the user's to mend."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:
        print(f"maskattn: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maskattn", description="Masked attention for NumPy, and a decoder on top.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="write a text for each text; without a model: dates in ISO 8601")
    generate.add_argument("texts", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    generate.add_argument("--model", metavar="DIR", help="checkpoint directory; default: the embedded date model")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="default: as the checkpoint says")
    generate.add_argument("--json", action="store_true", help="a JSON object per text")
    generate.add_argument("--weights", action="store_true", help="also the cross-attention, source against produced")
    generate.set_defaults(run=_generate)

    mask = commands.add_parser("mask", help="draw a mask, e.g. 'causal & window(4)'")
    mask.add_argument("expression", help="full, causal, window(left, right), padding(n), prefix(n), ... with & | ~")
    mask.add_argument("--q-len", type=int, required=True, metavar="N", help="queries")
    mask.add_argument("--kv-len", type=int, metavar="N", help="keys; default: as many as queries")
    mask.add_argument("--q-offset", type=int, metavar="N", help="position of the first query; default: kv-len - q-len")
    mask.add_argument("--batch-index", type=int, default=0, metavar="N", help="the sequence to show; default: 0")
    mask.add_argument("--head", type=int, default=0, metavar="N", help="the head to show; default: 0")
    mask.add_argument("--explain", metavar="Q,K", help="instead: why query position Q sees key K, or does not")
    mask.add_argument("--png", metavar="FILE", help="instead of drawing in the terminal: write a picture (extra: plot)")
    mask.set_defaults(run=_mask)

    info = commands.add_parser("info", help="version, instruction sets, threads")
    info.add_argument("--json", action="store_true", help="as a JSON object")
    info.set_defaults(run=_info)
    return parser


def _generate(options: argparse.Namespace) -> None:
    from maskattn.decoder import load
    from maskattn.terminal import ProgressBar

    texts = options.texts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    model = load(options.model)
    with ProgressBar() as bar:
        show = bar if len(texts) >= _MANY_LINES and sys.stderr.isatty() else None
        outputs = model.generate(texts, max_new_tokens=options.max_new_tokens, progress=show)
    for text, output in zip(texts, outputs, strict=True):
        print(_record(model, text, output, options) if options.json else output)
        if options.weights and not options.json:
            print(_picture(model, text, output))


def _record(model: Model, text: str, output: str, options: argparse.Namespace) -> str:
    record: dict[str, Any] = {"source": text, "output": output}
    if options.weights:
        weights, produced, source = _cross_attention(model, text, output)
        record |= {"source_tokens": source, "output_tokens": produced, "weights": weights.round(6).tolist()}
    return json.dumps(record, ensure_ascii=False)


def _picture(model: Model, text: str, output: str) -> str:
    from maskattn.alignment import draw_alignment

    weights, produced, source = _cross_attention(model, text, output)
    return draw_alignment(weights, source, produced)


def _cross_attention(model: Model, text: str, output: str) -> tuple[Any, list[str], list[str]]:
    """Weights (produced, source), the mean over layers and heads, and the tokens that name its rows and columns."""
    assert model.tokenizer is not None  # generate has used it
    source, target = model.tokenizer.encode(text), model.tokenizer.encode(output)
    weights = model.cross_attention(source, target).mean(axis=(0, 1))
    return weights, model.tokenizer.tokens(target), model.tokenizer.tokens(source)


def _mask(options: argparse.Namespace) -> None:
    from maskattn.masks.parse import parse
    from maskattn.masks.picture import draw_and_count, save
    from maskattn.masks.view import View

    mask, q_len = parse(options.expression), options.q_len
    kv_len = q_len if options.kv_len is None else options.kv_len
    view = View.of(mask, q_len, kv_len, options.q_offset, None, options.batch_index, options.head)
    if options.png:
        save(view, options.png)
    if options.explain:
        print(_explain(view, options.explain))
    if not options.png and not options.explain:
        picture, seen = draw_and_count(view)
        print(picture)
        print(f"{seen} of {q_len * kv_len} positions attended")


def _explain(view: View, pair: str) -> str:
    try:
        query, key = (int(part) for part in pair.split(","))
    except ValueError:
        raise ValueError(f"--explain must be Q,K: a query and a key position, got {pair!r}") from None
    first, end = view.q_offset, view.q_offset + view.plan.q_len
    if not first <= query < end:
        queries = f"from {first} to {end - 1}" if end > first else "position, but there are none"
        raise ValueError(f"--explain must name a query {queries}, got {query}")
    return view.mask.explain(view.b, view.h, query, key, q_offset=first, kv_length=view.kv_length)


def _info(options: argparse.Namespace) -> None:
    from maskattn.runtime import info

    facts = info()
    if options.json:
        print(json.dumps(facts))
        return
    for name, fact in facts.items():
        print(f"{name.replace('_', ' '):14} {' '.join(fact) if isinstance(fact, list) else fact}")


if __name__ == "__main__":
    sys.exit(main())
