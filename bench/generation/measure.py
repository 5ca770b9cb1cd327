"""Sides in turns, round after round, with the floor measured in between."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import limits
from bench.generation.shapes import Workload
from bench.generation.sides import OURS, Failed, Side
from bench.side_by_side import processor_seconds

PAUSE = 0.03  # seconds for the idle threads of one side, which spin for some ms, to leave the processors to the next
READS = 5  # readings behind a rate


class LeftOut(defaultdict[tuple[str, str], list[str]]):
    """Where a side took no part, by its name and the reason."""

    def __init__(self) -> None:
        super().__init__(list)


@dataclass
class Times:
    """Seconds until the first token, and of each further step, by round; a step writes a token of every sequence."""

    first: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


@dataclass
class Row:
    """A model and dtype with a workload.

    Attributes:
        times: by side.
        step_bytes: what a step of ours reads at least.
        rates: bytes a second that this machine read, by round.
        outside: share of a step of ours in which no function of the core runs.
        load_s, start_s, peak_mb: of ours, see ``Side``.
        weights_mb: of all parameters as our dtype stores them.
        others: share of the processors that other processes used meanwhile.
    """

    model: str
    dtype: str
    workload: str
    threads: int
    times: dict[str, Times] = field(default_factory=dict)
    step_bytes: int = 0
    rates: list[float] = field(default_factory=list)
    outside: float = float("nan")
    load_s: float = 0.0
    start_s: float = 0.0
    peak_mb: float = 0.0
    weights_mb: float = 0.0
    others: float = 0.0

    @property
    def floors(self) -> list[float]:
        """Seconds to read what a step reads, by round."""
        return [self.step_bytes / rate for rate in self.rates]

    @property
    def share(self) -> float:
        """The floor over our time, paired by round."""
        ours = self.times[OURS].step
        return statistics.median(floor / step for floor, step in zip(self.floors, ours, strict=True))

    def best(self, what: str) -> str | None:
        """The fastest other side; ``what``: "first" or "step"."""
        found = {name: statistics.median(getattr(times, what)) for name, times in self.times.items() if name != OURS}
        return min(found, key=found.__getitem__) if found else None

    def ratio(self, what: str) -> float | None:
        """How many times as long as ours the best other side takes, paired by round."""
        best = self.best(what)
        if best is None:
            return None
        pairs = zip(getattr(self.times[OURS], what), getattr(self.times[best], what), strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)


def start(
    names: Sequence[str],
    path: Path,
    dtype: str,
    threads: int,
    pythons: Mapping[str, str],
    first: Workload,
    left_out: LeftOut,
) -> list[Side]:
    """The sides that can; the others are named with their reasons."""
    sides = []
    for name in names:
        try:
            sides.append(Side.start(name, path, dtype, threads, pythons, first))
        except Failed as failed:
            if name == OURS:
                raise SystemExit(f"{path.name}, {dtype}: {failed}") from failed
            left_out[name, str(failed)].append(f"{path.name} {dtype}")
    return sides


def measure(
    model: str, dtype: str, workload: Workload, sides: Sequence[Side], rounds: int, threads: int, left_out: LeftOut
) -> Row:
    """Each side writes one token and then all of them, once a round, backwards every other round."""
    able = []
    for side in sides:
        try:
            for tokens in (1, 2):
                side.write(workload, tokens)
            able.append(side)
        except Failed as failed:
            left_out[side.name, str(failed)].append(f"{model} {dtype}, {workload.name}")
    ours = next(side for side in able if side.name == OURS)
    row = Row(model, dtype, workload.name, threads, load_s=ours.load_s, start_s=ours.start_s, peak_mb=ours.peak_mb)
    row.times = {side.name: Times() for side in able}
    probe = limits.read_probe()
    begun, before = time.perf_counter(), _processor_seconds(able)
    for i in range(rounds):
        for side in able[:: -1 if i % 2 else 1]:
            one, many = (_write(side, workload, tokens) for tokens in (1, workload.tokens))
            row.times[side.name].first.append(one)
            row.times[side.name].step.append((many - one) / (workload.tokens - 1))
            if side is ours:
                row.rates.append(read_rate(probe))
    capacity = (time.perf_counter() - begun) * (os.cpu_count() or 1)
    row.others = max(0.0, _processor_seconds(able) - before) / capacity
    found = ours.ask("bytes_read", workload)
    row.step_bytes, row.weights_mb = found["step"], found["weights"] / 1e6
    row.outside = ours.ask("outside", workload)["share"]
    return row


def _write(side: Side, workload: Workload, tokens: int) -> float:
    time.sleep(PAUSE)
    return side.write(workload, tokens)


def read_rate(probe: limits.Probe) -> float:
    """Bytes a second, of an array that no cache holds: the fastest of a few readings, right beside what it bounds."""
    found = []
    for _ in range(READS):
        start = time.perf_counter()
        probe.call()
        found.append(time.perf_counter() - start)
    return probe.work * 1e9 / min(found)


def _processor_seconds(sides: Sequence[Side]) -> float:
    """Of all processes but this one and those of the sides."""
    everyone, own = processor_seconds()
    return everyone - own - sum(side.processor_seconds() for side in sides)
