"""``maskattn models`` and ``info``: which families there are, what a checkpoint is, what the build can do."""

from __future__ import annotations

import argparse
import json
from typing import Any

from maskattn.cli import common


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = commands.add_parser("models", help="the model families; or what a checkpoint is, and what it can do")
    models.add_argument("model", nargs="?", metavar="DIR", help="checkpoint directory, or owner/name on the Hub")
    models.add_argument("--json", action="store_true", help="as JSON")
    models.set_defaults(run=_models)

    info = commands.add_parser("info", help="version, instruction sets, threads")
    info.add_argument("--json", action="store_true", help="as a JSON object")
    info.set_defaults(run=_info)


def _models(options: argparse.Namespace) -> None:
    from maskattn.decoder.describe import describe, families

    if options.model is not None:
        _print(describe(options.model), options.json)
    elif options.json:
        common.print_json(families())
    else:
        for kind, names in families().items():
            print(f"{kind:16} {', '.join(names)}")


def _info(options: argparse.Namespace) -> None:
    from maskattn.runtime import info

    _print(info(), options.json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for name, fact in facts.items():
        print(f"{name.replace('_', ' '):14} {_text(fact)}")


def _text(fact: Any) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in fact.items())
    return " ".join(map(str, fact)) if isinstance(fact, list) else str(fact)
