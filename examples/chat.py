"""Chat with a decoder-only model: a line in, an answer out, and all that was said before is part of the question.

    python examples/chat.py --model tiny/chat "My name is Ida." "What is my name?"

The checkpoint's chat template makes one text of the conversation; ``--prompt`` shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from common import load, parser, show


def main(arguments: Sequence[str] | None = None) -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("messages", nargs="*", metavar="TEXT", help="default: lines from standard input")
    arguments_of.add_argument("--system", metavar="TEXT", help="what the assistant is told before it all begins")
    arguments_of.add_argument("--sample", action="store_true", help="draw tokens, as the checkpoint's settings say")
    arguments_of.add_argument("--seed", type=int, metavar="N", help="of the draws")
    arguments_of.add_argument("--max-new-tokens", type=int, metavar="N", help="default: as the checkpoint says")
    arguments_of.add_argument("--prompt", action="store_true", help="also what the model reads")
    options = arguments_of.parse_args(arguments)

    model = load(options, "chat")
    history = [{"role": "system", "content": options.system}] if options.system else []
    settings = {"do_sample": options.sample, "seed": options.seed, "max_new_tokens": options.max_new_tokens}
    for message in options.messages or typed():
        history.append({"role": "user", "content": message})
        record = {"message": message} | ({"prompt": model.chat_prompt(history)} if options.prompt else {})
        if options.prompt and not options.json:
            print(record["prompt"])
        answer = ""
        for piece in model.stream_chat(history, num_beams=1, **settings):
            answer += piece
            if not options.json:
                print(piece, end="", flush=True)
        history.append({"role": "assistant", "content": answer})
        show(record | {"answer": answer}, "", as_json=options.json)


def typed() -> Iterator[str]:
    """Lines as they come, with a prompt for a person."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


if __name__ == "__main__":
    main()
