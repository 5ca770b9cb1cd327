"""Small models for engines, requests for them, and a gate that holds an engine up."""

from __future__ import annotations

import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import maskattn
import tiny_families

VOCAB, POSITIONS = tiny_families.VOCAB, tiny_families.POSITIONS
SECONDS = 60  # until a test gives up on what should take none
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
MODELS: dict[str, dict[str, Any]] = {
    "marian": tiny_families.config("marian"),
    "t5": tiny_families.config("t5"),
    "gpt2": tiny_families.config("gpt2"),
    "opt": tiny_families.config("opt"),
    "llama, dynamic": tiny_families.config("llama"),  # keys turn by the length of their sequence
    "mistral, a window": tiny_families.config("mistral"),
    "phi3, longrope": tiny_families.config(  # sequences that grow past 16 are read again
        "phi3", rope_scaling=LONGROPE, original_max_position_embeddings=16
    ),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "seed": 5, "temperature": 1.5},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    {"do_sample": True, "seed": 6, "top_p": 0.9},
    {"min_new_tokens": 9, "suppress_tokens": [7]},
]


@cache
def model(name: str) -> maskattn.Model:
    """One of ``MODELS``, loaded once."""
    with tempfile.TemporaryDirectory() as directory:
        return maskattn.load(tiny_families.write(Path(directory), MODELS[name]))


def random_requests(count: int, seed: int = 3) -> tuple[list[list[int]], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    sources = [rng.integers(3, VOCAB, n).tolist() for n in rng.integers(1, 40, count)]
    return sources, [
        OPTIONS[i % len(OPTIONS)] | {"max_new_tokens": int(n)} for i, n in enumerate(rng.integers(1, 22, count))
    ]


class Gate:
    """A logits processor that holds an engine up, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids: Any, scores: Any) -> Any:
        self.reached.set()
        assert self.opened.wait(SECONDS)
        return scores
