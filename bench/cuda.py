"""maskattn on a CUDA device against PyTorch there: SDPA with each of its backends, and FlexAttention compiled.

    pip install ".[parity]" -C cmake.define.MASKATTN_CUDA=ON && python -m bench.cuda --markdown

One process, in turns, by the device's clock; what can be captured is timed as a graph, so that launches do not count.
Beside the ratio to the fastest of PyTorch's ways stands the share of what the device was measured to do in the same
run: the rate of a large matrix product in that dtype, or, for decodes, the bandwidth of a large copy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

try:
    from bench import side_by_side as timing  # PyTorch first
except ModuleNotFoundError:
    raise SystemExit('bench.cuda needs PyTorch, which is not installed: pip install ".[parity]"') from None

import torch

import maskattn
from bench import cuda_cases
from bench.cuda_cases import Case
from bench.side_by_side import Call, Result, Ways, milliseconds

SAMPLE = 0.02  # seconds of calls behind one time
HOPELESS = 5.0  # a way this many times slower than the best is left out of the rounds
HEAD = ["case", "maskattn ms", "best of PyTorch ms (way)", "times faster", "rate", "of the device's", "goal"]


def captured(call: Call) -> Call:
    """The call as a graph, or itself where it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


def seconds(call: Call, count: int) -> float:
    """Of one call, on average over ``count`` calls in a row, by the device's clock."""
    call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / count


def in_turns(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Seconds of every way, one for each round; those that are hopeless are left out."""
    single = {name: min(seconds(way, 3) for _ in range(3)) for name, way in ways.items()}
    best = min(single.values())
    counts = {name: max(1, round(SAMPLE / t)) for name, t in single.items() if t < HOPELESS * best or name == ""}
    times: dict[str, list[float]] = {name: [] for name in counts}
    for i in range(rounds):
        for name in list(counts)[:: -1 if i % 2 else 1]:
            times[name].append(seconds(ways[name], counts[name]))
    return times


def limits(rounds: int) -> dict[str, float]:
    """GB/s of a copy, read and written bytes counted; GFLOP/s of products of matrices of random numbers."""
    found = {}
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    copying = in_turns({"": lambda: b.copy_(a)}, rounds)[""]
    found["copy"] = 2 * a.numel() * 1e-9 / statistics.median(copying)
    n = 8192
    for dtype in (torch.bfloat16, torch.float32):
        x, y = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(x)
        product = in_turns({"": lambda: torch.mm(x, y, out=out)}, rounds)[""]  # noqa: B023
        found[f"{str(dtype).removeprefix('torch.')} product"] = 2e-9 * n**3 / statistics.median(product)
    return found


def measure(case: Case, rounds: int) -> Result:
    prepared = cuda_cases.prepare(case, "cuda")
    with torch.inference_mode():
        errors = cuda_cases.check(case, prepared)
        ways = {name: captured(way) for name, way in {"": prepared.ours, **prepared.theirs}.items()}
        times = in_turns(ways, rounds)
    result = Result(case.name, 1, prepared.unit, prepared.work, {f"error of {name}": e for name, e in errors.items()})
    result.ours = times.pop("")
    result.theirs = times
    return result


def row(case: Case, result: Result, device: dict[str, float]) -> list[str]:
    rate = result.work / statistics.median(result.ours)
    share = rate / device[case.limit]
    goal = f"{case.goal:.0%} of it" if case.is_decode else f"{case.goal:g} times"
    best = f"{milliseconds(result.theirs[result.best])} ({result.best})" if result.theirs else "none"
    ratio = f"{statistics.median(result.ratios):.2f}" if result.theirs else "-"
    shown = f"{rate:.0f} GB/s" if case.is_decode else f"{rate / 1000:.0f} TFLOP/s"
    return [case.name, milliseconds(result.ours), best, ratio, shown, f"{share:.0%}", goal]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name it matches")
    parser.add_argument("--rounds", type=int, default=9, help="times behind each median (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's times")
    parser.add_argument("--markdown", action="store_true", help="tables to paste in a document")
    args = parser.parse_args()
    if not torch.cuda.is_available() or not maskattn.cuda.is_available():
        raise SystemExit(
            "bench.cuda needs a CUDA device and a PyTorch and a maskattn that were built for it: not run "
            f"(PyTorch {'sees one' if torch.cuda.is_available() else 'sees none'}, "
            f"maskattn {'sees one' if maskattn.cuda.is_available() else 'sees none'})"
        )
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    wanted = timing.matching({case.name: lambda: None for case in cuda_cases.cases()}, args.only)  # type: ignore[misc,return-value]
    device = limits(args.rounds)
    results, rows = [], [HEAD]
    for case in cuda_cases.cases():
        if case.name not in wanted:
            continue
        results.append(measure(case, args.rounds))
        rows.append(row(case, results[-1], device))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    measured = ", ".join(
        f"{name} {rate:.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}" for name, rate in device.items()
    )
    print(f"{torch.cuda.get_device_name()}; {timing.machine()}; medians of {args.rounds} rounds; {measured}\n")
    print(timing.table(rows, markdown=args.markdown))
    if args.json:
        timing.write_json(args.json, [results])


if __name__ == "__main__":
    main()
