"""What the examples share: a checkpoint by ``--model``, texts in, lines or JSON out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import maskattn


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", metavar="DIR", help="checkpoint directory, or owner/name on the Hub")
    made.add_argument("--json", action="store_true", help="a JSON object per result")
    return made


def load(options: argparse.Namespace, use: str) -> maskattn.Model:
    """The model that was asked for; without one, how to make a tiny one."""
    if options.model is None:
        raise SystemExit(
            "--model must name a checkpoint, got none; make a tiny one with\n"
            f"    python examples/tiny_models.py {use} tiny/{use}\nand pass --model tiny/{use}"
        )
    return maskattn.load(options.model)


def lines(given: Sequence[str]) -> list[str]:
    """The arguments, or the lines of standard input that are not empty."""
    return list(given) or [line for line in sys.stdin.read().splitlines() if line.strip()]


def show(record: dict[str, Any], text: str, *, as_json: bool) -> None:
    print(json.dumps(record, ensure_ascii=False) if as_json else text)
