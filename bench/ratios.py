"""Ratios of maskattn to PyTorch's scaled_dot_product_attention in float32, measured side by side in one process.

    pip install ".[parity]" && python bench/ratios.py --markdown

Only ratios of one run mean something: both sides see the same inputs (shared, not copied), the same machine and the
same neighbours. They are timed in turns, round after round. Of PyTorch's ways to compute a case the fastest counts.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import torch  # first, so that maskattn's OpenMP resolves to the runtime that PyTorch brings: one team, not two
except ModuleNotFoundError:
    raise SystemExit('ratios.py compares with PyTorch, which is not installed: pip install ".[parity]"') from None

import maskattn
import torch_ways as ways
import workloads
from workloads import TOLERANCE, Workload

BURST = 0.03  # seconds of calls behind one time: many short calls, or one long call
PAUSE = 0.01  # seconds for idle OpenMP workers, which spin for some ms after a call, to leave the processors
WARM = 0.002  # seconds of untimed calls that wake this side's workers and bring its data back into the caches
HOPELESS = 3.0  # a way of PyTorch's this many times slower than its best is left out of the rounds, if it is also
SLOW = 0.5  # this many seconds long: short ones cost nothing to keep, and may only have been disturbed
NOISY = 0.1  # share of the machine in other processes' hands from which a case is named as disturbed
MASK_SIZE = 8192

Call = Callable[[], Any]


@dataclass(frozen=True)
class Prepared:
    """Both sides of a case, ready to call; ``work`` is GFLOP, or GB where memory decides."""

    ours: Callable[[], npt.NDArray[Any]]
    theirs: ways.Ways
    work: float
    unit: str


@dataclass
class Result:
    case: str
    threads: int
    unit: str
    work: float
    ours: list[float] = field(default_factory=list)  # seconds a call, one per round
    theirs: dict[str, list[float]] = field(default_factory=dict)  # of each way, likewise
    hopeless: dict[str, float] = field(default_factory=dict)
    others: float = 0.0  # share of the machine's processors that other processes used meanwhile

    @property
    def best(self) -> str:
        return min(self.theirs, key=lambda way: statistics.median(self.theirs[way]))

    @property
    def ratios(self) -> list[float]:
        """Paired by round, so that a neighbour who slows down a whole round cancels out."""
        return [b / a for a, b in zip(self.ours, self.theirs[self.best], strict=True)]


def attention_case(workload: Workload, make_ways: Callable[[Workload, ways.Tensors], ways.Ways]) -> Prepared:
    inputs = workloads.draw(workload)
    memory_bound = workload.q_len == 1
    return Prepared(
        workloads.prepare(workload, inputs),
        make_ways(workload, ways.Tensors.of(inputs)),
        (workload.kv_bytes if memory_bound else workload.flops) / 1e9,
        "GB/s" if memory_bound else "GFLOP/s",
    )


def mask_case(n: int) -> Prepared:
    """Lowering and filling; PyTorch writes into old memory if that is its faster way, so ours does too."""
    out = np.empty((1, 1, n, n), np.float32)
    fill = partial(maskattn.masks.Causal().to_additive, n, n, out=out)
    return Prepared(fill, ways.additive_causal(n), out.nbytes / 1e9, "GB/s")


def cases() -> dict[str, Callable[[], Prepared]]:
    """By name, to be prepared one after the other: together they would need gigabytes."""
    pairs = [
        *((w, ways.causal) for w in (workloads.CAUSAL_512, workloads.CAUSAL_2048, workloads.CAUSAL_8192)),
        (workloads.CAUSAL_GQA, ways.causal),
        (workloads.CROSS, ways.padded),
        (workloads.ENCODER, ways.padded),
        (workloads.SLIDING_WINDOW, ways.window),
        (workloads.PACKED, ways.documents),
        (workloads.PREFIX_LM, ways.prefix_lm),
        *((w, ways.plain) for w in (*workloads.DECODE, workloads.SMALL)),
    ]
    attention = {workload.name: partial(attention_case, workload, how) for workload, how in pairs}
    return {**attention, f"causal mask to float {MASK_SIZE} x {MASK_SIZE}": partial(mask_case, MASK_SIZE)}


def check(case: str, prepared: Prepared) -> None:
    ours = prepared.ours()
    for name, way in prepared.theirs.items():
        theirs = way().numpy().reshape(ours.shape)
        with np.errstate(invalid="ignore"):  # inf - inf, where both masks hide: NaN, but equal
            right = (ours == theirs) | (np.abs(ours - theirs) <= TOLERANCE)
        if not right.all():
            raise SystemExit(f"{case}: maskattn and PyTorch ({name}) differ by more than {TOLERANCE}")


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
    result = Result(case, threads, prepared.unit, prepared.work)
    calls: dict[str, Call] = {"": prepared.ours, **prepared.theirs}  # "" is our side
    single = {name: estimate(call) for name, call in calls.items()}
    fastest = min(single[name] for name in prepared.theirs)
    for name in prepared.theirs:
        if single[name] > max(SLOW, HOPELESS * fastest):
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
    result.theirs = times
    return result


def run(only: str, threads: int, rounds: int) -> list[Result]:
    torch.set_num_threads(threads)
    maskattn.set_num_threads(threads)
    results = []
    for case, prepare in cases().items():
        if not re.search(only, case):
            continue
        prepared = prepare()
        with torch.inference_mode():
            check(case, prepared)
            results.append(measure(case, prepared, threads, rounds))
        print(f"[threads={threads}] {'  '.join(row(results[-1]))}", file=sys.stderr, flush=True)
        del prepared
        gc.collect()
    return results


def row(result: Result) -> list[str]:
    ours = statistics.median(result.ours)
    theirs = statistics.median(result.theirs[result.best])
    return [
        result.case,
        milliseconds(ours),
        f"{milliseconds(theirs)} ({result.best})",
        f"{statistics.median(result.ratios):.2f}",
        f"{result.work / ours:.3g} {result.unit}",
    ]


def milliseconds(t: float) -> str:
    return f"{t * 1e3:.3g}" if t < 1 else f"{t * 1e3:.0f}"


def table(results: list[Result], *, markdown: bool) -> str:
    rows = [["case", "maskattn ms", "torch ms (way)", "times faster", "maskattn rate"], *map(row, results)]
    if markdown:
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        return "\n".join([lines[0], "|---|--:|--:|--:|--:|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, cells, widths) for cells in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def machine() -> str:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        processor = found[1]
    return (
        f"{processor}; maskattn {maskattn.__version__} ({maskattn.info()['isa']}), "
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"NumPy {np.__version__}, Python {platform.python_version()}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="thread counts, one table each (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name it matches")
    parser.add_argument("--rounds", type=int, default=9, help="times behind each median (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's times")
    parser.add_argument("--markdown", action="store_true", help="tables to paste in the README")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not any(re.search(args.only, case) for case in cases()):
        raise SystemExit("\n".join([f"--only {args.only!r} matches no case; there are:", *cases()]))
    results = [run(args.only, int(n), args.rounds) for n in args.threads.split(",")]
    print(f"{machine()}; float32, medians of {args.rounds} rounds, ratios paired by round")
    for group in results:
        print(f"\n{group[0].threads} thread{'s' if group[0].threads > 1 else ''}:\n")
        print(table(group, markdown=args.markdown))
        if noisy := [f"{result.case} ({result.others:.0%})" for result in group if result.others > NOISY]:
            print(f"\nDisturbed by other processes, measure again: {'; '.join(noisy)}")
    if args.json:
        flat = [asdict(r) | {"best": r.best, "ratios": r.ratios} for group in results for r in group]
        args.json.write_text(json.dumps({"machine": machine(), "results": flat}, indent=1) + "\n")


if __name__ == "__main__":
    main()
