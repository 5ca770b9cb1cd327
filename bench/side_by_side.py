"""Timing our side and others' in turns, in one process: what the programs of this folder share.

Only ratios of one run mean something: both sides see the same inputs (shared, not copied), the same machine and the
same neighbours. They are timed round after round; of the others' ways to compute a case the fastest counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before maskattn, whose OpenMP then resolves to the runtime that PyTorch brings: one team, not two

import maskattn

BURST = 0.03  # seconds of calls behind one time: many short calls, or one long call
PAUSE = 0.01  # seconds for idle OpenMP workers, which spin for some ms after a call, to leave the processors
WARM = 0.002  # seconds of untimed calls that wake this side's workers and bring its data back into the caches
HOPELESS = 3.0  # a way this many times slower than the best is left out of the rounds, if it is also
SLOW = 0.5  # this many seconds long: short ones cost nothing to keep, and may only have been disturbed
NOISY = 0.1  # share of the machine in other processes' hands from which a case is named as disturbed

Call = Callable[[], Any]
Ways = dict[str, Call]


@dataclass(frozen=True)
class Prepared:
    """Both sides of a case, ready to call; ``work`` is in ``unit`` times seconds, GFLOP or GB."""

    ours: Call
    theirs: Ways
    work: float = 0.0
    unit: str = ""
    references: Ways = field(default_factory=dict)  # timed in the same rounds, but nobody's way to compute the case
    notes: dict[str, float] = field(default_factory=dict)  # what is known without timing


@dataclass
class Result:
    case: str
    threads: int
    unit: str
    work: float
    notes: dict[str, float] = field(default_factory=dict)
    ours: list[float] = field(default_factory=list)  # seconds a call, one per round
    theirs: dict[str, list[float]] = field(default_factory=dict)  # of each way, likewise
    references: dict[str, list[float]] = field(default_factory=dict)
    hopeless: dict[str, float] = field(default_factory=dict)
    others: float = 0.0  # share of the machine's processors that other processes used meanwhile

    @property
    def best(self) -> str:
        return fastest(self.theirs)

    @property
    def ratios(self) -> list[float]:
        """Paired by round, so that a neighbour who slows down a whole round cancels out."""
        return [b / a for a, b in zip(self.ours, self.theirs[self.best], strict=True)]


Cases = dict[str, Callable[[], Prepared]]  # by name, prepared one after the other: together they would need gigabytes
Check = Callable[[str, Prepared], None]
Cells = Callable[[Result], list[str]]


def fastest(times: dict[str, list[float]]) -> str:
    return min(times, key=lambda way: statistics.median(times[way]))


def processor_seconds() -> tuple[float, float]:
    """What all processes used since the machine started, and what this one did; Linux, elsewhere zeros."""
    try:  # user, nice, system: idle and waiting are not work (proc_stat(5))
        busy = sum(int(x) for x in Path("/proc/stat").read_text().split()[1:4])
    except (OSError, ValueError):
        return 0.0, 0.0
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK"), own.user + own.system


def seconds(call: Call, count: int) -> float:
    """Of one call, on average over ``count`` calls in a row."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    call()
    while time.perf_counter() - start < WARM:
        call()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def estimate(call: Call) -> float:
    """Seconds of one call; of short ones the best of three: a single hiccup would spoil the choice of counts."""
    first = seconds(call, 1)
    return first if first > BURST else min(first, seconds(call, 1), seconds(call, 1))


def measure(case: str, prepared: Prepared, threads: int, rounds: int) -> Result:
    result = Result(case, threads, prepared.unit, prepared.work, prepared.notes)
    calls: Ways = {"": prepared.ours, **prepared.theirs, **prepared.references}  # "" is our side
    single = {name: estimate(call) for name, call in calls.items()}
    best = min(single[name] for name in prepared.theirs)
    for name in prepared.theirs:
        if single[name] > max(SLOW, HOPELESS * best):
            result.hopeless[name] = single[name]
            del calls[name]
    counts = {name: max(1, round(BURST / single[name])) for name in calls}
    start, (all_before, own_before) = time.perf_counter(), processor_seconds()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        # In turns, and backwards every other round: nobody always runs after the same neighbour.
        for name in list(calls)[:: -1 if i % 2 else 1]:
            times[name].append(seconds(calls[name], counts[name]))
    all_after, own_after = processor_seconds()
    capacity = (time.perf_counter() - start) * (os.cpu_count() or 1)
    result.others = max(0.0, (all_after - all_before) - (own_after - own_before)) / capacity
    result.ours = times.pop("")
    result.references = {name: times.pop(name) for name in prepared.references}
    result.theirs = times
    return result


def run(cases: Cases, check: Check, cells: Cells, threads: int, rounds: int) -> list[Result]:
    torch.set_num_threads(threads)
    maskattn.set_num_threads(threads)
    results = []
    for case, prepare in cases.items():
        prepared = prepare()
        with torch.inference_mode():
            check(case, prepared)
            results.append(measure(case, prepared, threads, rounds))
        print(f"[threads={threads}] {'  '.join(cells(results[-1]))}", file=sys.stderr, flush=True)
        del prepared
        gc.collect()
    return results


def milliseconds(times: Sequence[float]) -> str:
    t = statistics.median(times)
    return f"{t * 1e3:.3g}" if t < 1 else f"{t * 1e3:.0f}"


def table(rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """The first row is the head; all columns but the first hold figures."""
    if markdown:
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        return "\n".join([lines[0], "|---|" + "--:|" * (len(rows[0]) - 1), *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, cells, widths) for cells in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def disturbed(results: Sequence[Result]) -> str:
    noisy = [result for result in results if result.others > NOISY]
    if not noisy:
        return ""
    named = "; ".join(f"{result.case} ({result.others:.0%})" for result in noisy)
    return f"\n\nDisturbed by other processes, measure again: {'all' if len(noisy) == len(results) > 1 else named}\n"


def plural(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def machine() -> str:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        processor = found[1]
    return (
        f"{processor}, {os.cpu_count()} processors; maskattn {maskattn.__version__} ({maskattn.info()['isa']}), "
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"NumPy {np.__version__}, Python {platform.python_version()}"
    )


def parser(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="thread counts, one table each (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name it matches")
    parser.add_argument("--rounds", type=int, default=9, help="times behind each median (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's times")
    parser.add_argument("--markdown", action="store_true", help="tables to paste in a document")
    return parser


def matching(cases: Cases, only: str) -> Cases:
    found = {case: prepare for case, prepare in cases.items() if re.search(only, case)}
    if not found:
        raise SystemExit("\n".join([f"--only {only!r} matches no case; there are:", *cases]))
    return found


def write_section(path: Path, name: str, text: str) -> None:
    """Replaces what stands between the lines ``<!-- name -->`` and ``<!-- /name -->`` of a document."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    document = path.read_text()
    if document.count(begin) != 1 or document.count(end) != 1:
        raise SystemExit(f"{path} must have the lines {begin.strip()} and {end.strip()} once each")
    head, rest = document.split(begin)
    path.write_text(f"{head}{begin}\n{text.strip()}\n\n{end}{rest.split(end)[1]}")


def write_json(path: Path, groups: Sequence[Sequence[Result]]) -> None:
    flat = [asdict(r) | {"best": r.best, "ratios": r.ratios} for group in groups for r in group]
    path.write_text(json.dumps({"machine": machine(), "results": flat}, indent=1) + "\n")


# The table of a script that compares whole calls with PyTorch's

HEAD = ["case", "maskattn ms", "torch ms (way)", "times faster", "maskattn rate"]


def row(result: Result) -> list[str]:
    return [
        result.case,
        milliseconds(result.ours),
        f"{milliseconds(result.theirs[result.best])} ({result.best})",
        f"{statistics.median(result.ratios):.2f}",
        f"{result.work / statistics.median(result.ours):.3g} {result.unit}",
    ]


def main(about: str, cases: Cases, check: Check, inputs: str = "") -> None:
    args = parser(about).parse_args()
    wanted = matching(cases, args.only)
    groups = [run(wanted, check, row, int(n), args.rounds) for n in args.threads.split(",")]
    print(f"{machine()}; {inputs}medians of {args.rounds} rounds, ratios paired by round")
    for group in groups:
        print(f"\n{plural(group[0].threads)}:\n")
        print(table([HEAD, *map(row, group)], markdown=args.markdown))
        print(disturbed(group), end="")
    if args.json:
        write_json(args.json, groups)
