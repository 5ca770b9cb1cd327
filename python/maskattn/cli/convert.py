"""``maskattn convert``: a checkpoint as a folder that loads by a memory map."""

from __future__ import annotations

import argparse

from maskattn.linear import DTYPES


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    convert = commands.add_parser("convert", help="write a checkpoint packed, so that it loads in milliseconds")
    convert.add_argument("source", metavar="SOURCE", help="checkpoint directory, or owner/name on the Hub")
    convert.add_argument("target", metavar="TARGET", help="the folder to write")
    convert.add_argument("--dtype", choices=DTYPES, help="of the matrices; default: as the model is loaded without one")
    convert.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from maskattn.decoder.converting import convert

    convert(options.source, options.target, dtype=options.dtype)
