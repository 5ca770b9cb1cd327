"""What commands that run a model share: the model, the options of generation, lines in, progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maskattn.decoder import GenerationOptions, Model

_MANY = 100  # from here on a progress bar is worth its line
#: Options of generation as flags: name -> (type, help). All others are for Python.
_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "max_new_tokens": (int, "the most new tokens; default: as the checkpoint says"),
    "min_new_tokens": (int, "no end before so many tokens"),
    "num_beams": (int, "beam search with N beams; default: 1"),
    "length_penalty": (float, "of beam search: above 1 longer texts win, below 1 shorter ones"),
    "temperature": (float, "when sampling: below 1 the probable become more probable"),
    "top_k": (int, "when sampling: only the N most probable tokens"),
    "top_p": (float, "when sampling: only the most probable tokens that together reach X"),
    "min_p": (float, "when sampling: only tokens at least X times as probable as the best"),
    "seed": (int, "when sampling: equal seeds, equal texts"),
    "repetition_penalty": (float, "above 1: what has been written becomes less probable"),
    "no_repeat_ngram_size": (int, "no sequence of N tokens twice"),
}


def add_model(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--model", metavar="DIR", help=f"checkpoint directory, or owner/name on the Hub; {default}")
    parser.add_argument("--device", metavar="NAME", help="cuda, or cuda:1 and so on; default: the CPU")
    parser.add_argument("--json", action="store_true", help="a JSON object per result")


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation", "what is not given is as in the checkpoint's generation config")
    group.add_argument("--sample", action=argparse.BooleanOptionalAction, help="draw tokens instead of the best ones")
    for name, (kind, text) in _FLAGS.items():
        metavar = "N" if kind is int else "X"
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    group.add_argument("--stop", action="append", metavar="TEXT", help="a text that ends the output; may be repeated")


def generation_options(options: argparse.Namespace) -> GenerationOptions:
    """What has been given."""
    given: dict[str, Any] = {name: getattr(options, name) for name in _FLAGS}
    given |= {"do_sample": options.sample, "stop_strings": options.stop}
    found: Any = {name: value for name, value in given.items() if value is not None}
    return found  # type: ignore[no-any-return]


def load(options: argparse.Namespace) -> Model:
    from maskattn.decoder import load

    try:
        return load(options.model, device=options.device)
    except RuntimeError as error:  # no such device, or no cuBLASLt
        if options.device is None or isinstance(error, NotImplementedError):
            raise
        raise OSError(str(error)) from error


def load_named(options: argparse.Namespace, kind: str) -> Model:
    """As :func:`load` where there is no default: ``--model`` must name a checkpoint ``kind``."""
    if options.model is None:
        raise ValueError(f"--model must name a checkpoint {kind}, got none; pass its folder, or owner/name on the Hub")
    return load(options)


def lines(given: Sequence[str]) -> list[str]:
    """The arguments, or the lines of standard input that are not empty."""
    return list(given) or [line for line in sys.stdin.read().splitlines() if line.strip()]


@contextmanager
def progress(count: int, many: int = _MANY) -> Iterator[Callable[[int, int], object] | None]:
    """A bar on standard error if that is a terminal and there is much to do."""
    from maskattn.terminal import ProgressBar

    with ProgressBar() as bar:
        yield bar if count >= many and sys.stderr.isatty() else None


def print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False))
