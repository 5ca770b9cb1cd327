"""What a constraint costs a step: the mask of a JSON schema's next tokens and its use, for a batch of one.

    pip install ".[constraints]" && python -m bench.grammars

The vocabulary is made up: all bytes, and words with and without a space in front. "In time": where so few tokens are
left that each step asks how the text can still be brought to its end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from maskattn.decoder.grammars.matching import Follower
from maskattn.decoder.grammars.vocabulary import Vocabulary, need

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}},
    },
    "required": ["name", "age", "tags"],
}
TEXT = '{"name":"' + "what it says " * 12 + '","age":41,"tags":["red","green","red"]}'


class Tokens:
    """A tokenizer, as far as it is asked."""

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
        words = {rng.choice(letters, rng.integers(2, 9)).tobytes() for _ in range(size)}
        self._bytes = [bytes([i]) for i in range(256)]
        self._bytes += [form for word in sorted(words) for form in (word, b" " + word)]
        self._bytes = self._bytes[:size]
        self.ids = {token: i for i, token in enumerate(self._bytes)}

    def token_bytes(self) -> dict[int, bytes]:
        return dict(enumerate(self._bytes))

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """The longest token first."""
        ids, at = [], 0
        while at < len(data := text.encode()):
            ids.append(next(i for n in range(9, 0, -1) if (i := self.ids.get(data[at : at + n])) is not None))
            at += len(self._bytes[ids[-1]])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[i] for i in ids).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", default="32000,58101,151936", help="their sizes")
    options = parser.parse_args(arguments)
    print("| tokens | once per model, ms | once per call, ms | a step, us | in time, us |\n|--:|--:|--:|--:|--:|")
    for size in map(int, options.vocabularies.split(",")):
        tokens = Tokens(size)
        start = time.perf_counter()
        vocabulary = Vocabulary(tokens, size)
        assert vocabulary.core
        made = time.perf_counter() - start
        grammar = need().LLMatcher.grammar_from_json_schema(SCHEMA, defaults={"whitespace_pattern": " ?"})
        start = time.perf_counter()
        follower = Follower(vocabulary, grammar)
        opened = time.perf_counter() - start
        row = [steps(follower, tokens, 10000), steps(Follower(vocabulary, grammar), tokens, 5)]
        print(f"| {size} | {made * 1e3:.0f} | {opened * 1e3:.1f} | {row[0]:.0f} | {row[1]:.0f} |", flush=True)


def steps(follower: Follower, tokens: Tokens, spare: int) -> float:
    """Microseconds of a step, the median, while the text is written with ``spare`` tokens left behind it."""
    ids, times = tuple(tokens.encode(TEXT, special_tokens=False)), []
    scores = np.random.default_rng(0).standard_normal(len(tokens.token_bytes())).astype(np.float32)
    for n in range(len(ids)):
        own = scores.copy()
        start = time.perf_counter()
        allowed, _ = follower.allowed(ids[:n], len(ids) - n + spare, own)
        own[:] = np.where(allowed, own, -np.inf)
        times.append(time.perf_counter() - start)
        assert allowed[ids[n]] or spare < 10000, tokens.decode(ids[: n + 1])
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    main()
