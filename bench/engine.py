"""Continuous batching: requests that arrive at random, by an engine, one after another, and as batches of those there.

    pip install ".[parity]" && python -m bench.engine --markdown

The same requests each time, of random lengths and token counts, on the shapes of real models with random weights.
They arrive at the rate at which one after another could just be served, times ``--load``. Tokens per second are those
of all requests over the time from the first arrival to the last token; a request waits for its first token, and for its
last, from its own arrival. "Batches" take all that have arrived when the batch before has ended, as a server without an
engine would.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from bench.generation.shapes import build

import maskattn  # isort: skip

NAMES = ("Marian", "GPT-2")


@dataclass(frozen=True)
class Arrival:
    """A request: ``at`` seconds after the first it wants ``count`` tokens behind ``source``."""

    at: float
    source: list[int]
    count: int


@dataclass(frozen=True)
class Served:
    """Seconds after its arrival at which a request had its first token, and its last."""

    first: float
    last: float


Serve = Callable[[maskattn.Model, Sequence[Arrival]], list[Served]]


def one_by_one(model: maskattn.Model, arrivals: Sequence[Arrival]) -> list[Served]:
    start, served = time.perf_counter(), []
    for arrival in arrivals:
        _wait_until(start + arrival.at)
        times = []
        for _ in model.stream_ids(arrival.source, max_new_tokens=arrival.count):
            times.append(time.perf_counter() - start - arrival.at)
        served.append(Served(times[0], times[-1]))
    return served


def batches(model: maskattn.Model, arrivals: Sequence[Arrival]) -> list[Served]:
    start, served = time.perf_counter(), []
    while len(served) < len(arrivals):
        _wait_until(start + arrivals[len(served)].at)
        now = time.perf_counter() - start
        here = [arrival for arrival in arrivals[len(served) :] if arrival.at <= now][:64]
        first: dict[int, float] = {}

        def note(tokens: Any, first: dict[int, float] = first) -> None:
            first.setdefault(tokens.source, time.perf_counter() - start)

        # A batch has one limit; who needs fewer tokens has them when the batch ends.
        most = max(arrival.count for arrival in here)
        model.generate_ids([arrival.source for arrival in here], max_new_tokens=most, on_tokens=note)
        end = time.perf_counter() - start
        served += [Served(first[i] - arrival.at, end - arrival.at) for i, arrival in enumerate(here)]
    return served


def engine(model: maskattn.Model, arrivals: Sequence[Arrival]) -> list[Served]:
    served: dict[int, Served] = {}

    def follow(i: int, request: Any) -> None:
        times = []
        for _ in request:
            times.append(time.perf_counter() - start - arrivals[i].at)
        served[i] = Served(times[0], times[-1])

    with maskattn.Engine(model) as running:
        start, readers = time.perf_counter(), []
        for i, arrival in enumerate(arrivals):
            _wait_until(start + arrival.at)
            request = running.submit_ids(arrival.source, max_new_tokens=arrival.count)
            readers.append(Thread(target=follow, args=(i, request)))
            readers[-1].start()
        for reader in readers:
            reader.join()
    return [served[i] for i in range(len(arrivals))]


def _wait_until(when: float) -> None:
    if (rest := when - time.perf_counter()) > 0:
        time.sleep(rest)


WAYS: dict[str, Serve] = {"one by one": one_by_one, "batches": batches, "engine": engine}


def arrivals_of(model: maskattn.Model, count: int, load: float) -> list[Arrival]:
    """Requests whose sum of work takes one after another ``load`` times as long as they take to arrive."""
    rng = np.random.default_rng(0)
    vocab = int(model.config["vocab_size"])
    sources = [rng.integers(10, vocab, n).tolist() for n in rng.integers(8, 65, count)]
    counts = rng.integers(16, 65, count).tolist()
    some = list(zip(sources, counts, strict=True))[:4]
    start = time.perf_counter()
    for source, wanted in some:
        model.generate_ids([source], max_new_tokens=wanted)
    a_token = (time.perf_counter() - start) / sum(wanted for _, wanted in some)
    gaps = rng.exponential(a_token * float(np.mean(counts)) / load, count)
    times = np.concatenate([[0.0], np.cumsum(gaps)[:-1]])
    return [Arrival(float(at), source, n) for at, source, n in zip(times, sources, counts, strict=True)]


def measure(model: maskattn.Model, arrivals: Sequence[Arrival]) -> dict[str, dict[str, float]]:
    found = {}
    for name, serve in WAYS.items():
        served = serve(model, arrivals)
        took = max(arrival.at + times.last for arrival, times in zip(arrivals, served, strict=True))
        first = np.array([times.first for times in served])
        found[name] = {
            "tokens_per_s": sum(arrival.count for arrival in arrivals) / took,
            "first_token_s": float(np.median(first)),
            "first_token_p95_s": float(np.quantile(first, 0.95)),
            "last_token_s": float(np.median([times.last for times in served])),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--load", type=float, default=4.0, help="how many times too many for one after another")
    parser.add_argument("--models", type=Path, help="where checkpoints are kept; default: a temporary folder")
    parser.add_argument("--markdown", action="store_true", help="a table; default: a JSON object per model")
    options = parser.parse_args(arguments)
    if options.markdown:
        print("| | | tokens per second | first token, s | 95% within, s | last token, s |\n|---|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.names:
            model = maskattn.load(build(name, options.models or Path(temporary)), dtype=options.dtype)
            found = measure(model, arrivals_of(model, options.requests, options.load))
            if not options.markdown:
                print(json.dumps({"model": name, "dtype": options.dtype, **found}), flush=True)
                continue
            for way, row in found.items():
                numbers = " | ".join(f"{row[key]:.3g}" for key in row)
                print(f"| {name}, {options.dtype} | {way} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
