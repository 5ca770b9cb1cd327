"""Generation on a CUDA device, on the shapes of real models with random weights, beside transformers on PyTorch there.

    pip install ".[parity,cuda]" -C cmake.define.MASKATTN_CUDA=ON && python -m bench.cuda_generation

Greedy search behind prompts, or sources, of one length, alone and in a batch. One process, in turns; medians of the
rounds. "First token" is the time to read the prompts and to write one token of each; a step's time is (time of all
tokens - time of one) / (tokens - 1). Its share of the bandwidth is that of the bytes that it needs at least (matrices,
keys and values, each once) in what this run copies in the same time, read and written bytes counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import maskattn
from bench.generation import shapes
from bench.generation.with_maskattn import Side as OurSide
from maskattn.cuda.module import compiled

MODELS = ("Marian", "Qwen2.5-0.5B", "TinyLlama")
DTYPES = ("bfloat16", "float32")
COPIED = 1 << 30  # bytes that a copy reads, no cache holds them
OURS = "maskattn"
HEAD = ("model", "dtype", "batch", "side", "first token ms", "ms a step", "of the copy's bandwidth")


class Side(Protocol):
    def write(self, sources: Any, tokens: int, beams: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class Times:
    """Seconds, one of each round."""

    first: list[float]
    step: list[float]


@dataclass(frozen=True)
class Case:
    """What is written: ``tokens`` behind each of ``batch`` prompts of ``length`` tokens."""

    model: str
    dtype: str
    batch: int
    length: int
    tokens: int


def copy_bandwidth(device: str, size: int = COPIED, copies: int = 10) -> float:
    """Bytes a second, read and written."""
    from maskattn.decoder.device import open_device

    where = open_device(device)
    a, b, last = (compiled.DeviceArray(where, [n], np.dtype(np.float32)) for n in (size // 4, size // 4, 1))
    b.copy_from(0, a, 0, size // 4)
    last.numpy()  # waits for what was begun before
    start = time.perf_counter()
    for _ in range(copies):
        b.copy_from(0, a, 0, size // 4)
    last.numpy()
    return 2 * size * copies / (time.perf_counter() - start)


def start_sides(path: Path, dtype: str, device: str) -> dict[str, Side]:
    """Ours, and transformers where PyTorch sees a device."""
    sides: dict[str, Side] = {OURS: OurSide(path, dtype, maskattn.num_threads(), device)}
    try:
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        return sides
    if torch.cuda.is_available():
        from bench.generation.with_transformers_cuda import Side as TheirSide

        sides["transformers"] = TheirSide(path, dtype, device)
    return sides


def seconds(side: Side, sources: Any, tokens: int) -> float:
    start = time.perf_counter()
    written = side.write(sources, tokens, 1)
    took = time.perf_counter() - start
    if any(len(row) != tokens for row in written):
        raise SystemExit(f"every side must write {tokens} tokens, got {[len(row) for row in written]}")
    return took


def measure(sides: Mapping[str, Side], sources: Any, tokens: int, rounds: int) -> dict[str, Times]:
    """Of all sides in turns, backwards every other round."""
    for side in sides.values():
        for _ in range(2):  # what is recorded when it comes again
            seconds(side, sources, tokens)
    found = {name: Times([], []) for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            one, every = (seconds(sides[name], sources, count) for count in (1, tokens))
            found[name].first.append(one)
            found[name].step.append((every - one) / (tokens - 1))
    return found


def lines(case: Case, times: Mapping[str, Times], step_bytes: int, bandwidth: float) -> list[str]:
    """Rows of the table."""
    rows = []
    for name, each in times.items():
        step = statistics.median(each.step)
        shown = [
            f"{statistics.median(each.first) * 1e3:.2f}",
            f"{step * 1e3:.3f}",
            f"{step_bytes / step / bandwidth:.0%}",
        ]
        rows.append(line([case.model, case.dtype, str(case.batch), name, *shown]))
    return rows


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def run(options: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """Prints a table; returns every round's times."""
    bandwidth = copy_bandwidth(options.device, options.copied)
    print(
        f"{options.device}: copies {bandwidth * 1e-9:.0f} GB/s; {options.length} tokens before {options.tokens} new\n"
    )
    print(line(HEAD), line(["---"] * 4 + ["--:"] * 3), sep="\n", flush=True)
    found = []
    for model in options.models:
        path = shapes.build(model, root)
        for dtype in options.dtypes:
            sides = start_sides(path, dtype, options.device)
            ours = sides[OURS]
            assert isinstance(ours, OurSide)
            for batch in options.batches:
                case = Case(model, dtype, batch, options.length, options.tokens)
                lengths = [case.length] * batch
                times = measure(sides, shapes.sources(ours.model.config, tuple(lengths)), case.tokens, options.rounds)
                step_bytes = ours.bytes_of_a_step(lengths, case.tokens, 1)
                print(*lines(case, times, step_bytes, bandwidth), sep="\n", flush=True)
                sides_times = {name: asdict(each) for name, each in times.items()}
                found.append({**asdict(case), "step_bytes": step_bytes, "bandwidth": bandwidth, "times": sides_times})
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=shapes.SHAPES, default=MODELS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 16), metavar="N")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt or source (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="that are written (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times behind each median (default: %(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--copied", type=int, default=COPIED, help="bytes of the copy behind the bandwidth")
    parser.add_argument("--root", type=Path, help="where checkpoints are kept; default: a folder that is removed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's times")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if not maskattn.cuda.is_available():
        why = "sees none" if maskattn.cuda.is_built() else "was built without CUDA"
        raise SystemExit(
            f"bench.cuda_generation needs a CUDA device and a maskattn built for it: not run (maskattn {why})"
        )
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, (options.root or Path(folder)).resolve())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
