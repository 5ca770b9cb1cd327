"""``maskattn chat``: a line in, an answer out; all that was said before is part of the question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from maskattn.cli import common


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    chat = commands.add_parser("chat", help="talk with a model that was trained on conversations")
    chat.add_argument("messages", nargs="*", metavar="TEXT", help="said one after the other; default: lines as typed")
    common.add_model(chat, "required")
    chat.add_argument("--system", metavar="TEXT", help="what the model is told before it all begins")
    common.add_generation(chat)
    chat.set_defaults(run=_chat)


def _chat(options: argparse.Namespace) -> None:
    model, settings = common.load_named(options, "of a model that chats"), common.generation_options(options)
    history = [{"role": "system", "content": options.system}] if options.system else []
    # What a terminal shows is not taken back, as beams may: their answers are shown when they are whole.
    shown = not options.json and (options.num_beams or 1) == 1
    for message in options.messages or _typed():
        history.append({"role": "user", "content": message})
        answer = ""
        for piece in model.stream_chat(history, **settings):
            answer = answer[: len(answer) - piece.retracted] + piece
            if shown:
                print(f"\n{answer}" if piece.retracted else piece, end="", flush=True)
        history.append({"role": "assistant", "content": answer})
        if options.json:
            common.print_json({"message": message, "answer": answer})
        else:
            print("" if shown else answer, flush=True)


def _typed() -> Iterator[str]:
    """Lines as they come, with a prompt for a person."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
