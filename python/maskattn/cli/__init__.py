"""The command ``maskattn``: write, score, classify, transcribe and chat with models, draw masks, say what there is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maskattn.cli import about, chat, classes, convert, draw, speech, texts
from maskattn.version import __version__


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
    for module in (texts, classes, speech, chat, convert, draw, about):
        module.add(commands)
    return parser
