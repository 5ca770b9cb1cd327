"""maskattn against its peers and the machine's limits: every case of attention, in every dtype, in one process.

    pip install ".[parity]" && python -m bench.compare --markdown

Peers: PyTorch's SDPA (``torch``), the same rearranged by hand (``expert``), FlexAttention (``flex``), and ONNX Runtime
and OpenVINO where they are installed. Of all their ways the fastest counts. Every result is compared with float64
before it is timed, and ways that are much coarser than ours are left out. How it is timed:
side_by_side.py; what the limits are: limits.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

try:
    from bench import side_by_side as timing  # PyTorch first
except ModuleNotFoundError:
    raise SystemExit('bench.compare needs PyTorch, which is not installed: pip install ".[parity]"') from None

import torch

from bench import limits, workloads
from bench.flex_ways import ways as flex_ways
from bench.onnx_ways import onnxruntime_ways, openvino_ways
from bench.side_by_side import Cases, Prepared, Result, Ways, milliseconds
from bench.torch_ways import Tensors, from_numpy
from bench.torch_ways import ways as torch_ways
from bench.variants import VARIANTS, Variant
from bench.workloads import Inputs, Reference, Workload, draw

PEERS = ("torch", "expert", "flex", "onnxruntime", "openvino")
DEFAULT_VARIANTS = "float32,float32 high,float32 medium,bfloat16"
SLACK = 10  # times our tolerance a peer's error may be; further is another precision
COARSEST = 1e-2  # but no error over this
QUICK_LENGTH = 2048  # what --quick leaves out is longer
FROM_NUMPY = "smallest call, from and to NumPy"
WORKLOADS = (
    workloads.CAUSAL_512,
    workloads.CAUSAL_2048,
    workloads.CAUSAL_8192,
    workloads.CAUSAL_GQA,
    workloads.CROSS,
    workloads.ENCODER,
    workloads.SLIDING_WINDOW,
    workloads.PACKED,
    workloads.PREFIX_LM,
    workloads.DENSE,
    workloads.BIGBIRD,
    workloads.T5_BIAS,
    *workloads.DECODE,
    *workloads.DECODE_RAGGED,
    workloads.SMALL,
)


def peer_of(way: str) -> str:
    return way.split(":")[0]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ways_of(w: Workload, inputs: Inputs, peers: Sequence[str]) -> Ways:
    """By peer and way; a peer that cannot do the case is left out, with a note of why."""
    tensors = Tensors.of(inputs)
    makers: dict[str, Callable[[], Ways]] = {
        "torch": lambda: torch_ways(w, tensors),
        "expert": lambda: torch_ways(w, tensors),
        "flex": lambda: flex_ways(w, tensors),
        "onnxruntime": lambda: onnxruntime_ways(w, inputs),
        "openvino": lambda: openvino_ways(w, inputs),
    }
    found: Ways = {}
    for peer in peers:
        try:
            found |= {way: call for way, call in makers[peer]().items() if peer_of(way) == peer}
        except Exception as error:  # whatever another library raises
            note(f"{w.name}: {peer} left out: {first_line(error)}")
    return found


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def as_array(result: Any, shape: tuple[int, ...]) -> Any:
    """Whatever a library returns; groups folded into rows are unfolded."""
    if isinstance(result, torch.Tensor):
        result = result.double()
    return np.asarray(result.numpy() if hasattr(result, "numpy") else result).reshape(shape)


def errors_of(ways: Ways, reference: Reference, shape: tuple[int, ...], case: str) -> dict[str, float]:
    errors = {}
    for way, call in ways.items():
        try:
            errors[way] = reference.error(as_array(call(), shape))
        except Exception as error:  # as above; compiled code fails at its first call
            note(f"{case}: {way} left out: {first_line(error)}")
    return errors


def prepare(w: Workload, variant: Variant, peers: Sequence[str], *, numpy: bool = False) -> Prepared:
    """Both sides, checked; notes hold the errors by way ("" is ours) and the probes' work."""
    threads = torch.get_num_threads()
    torch.set_float32_matmul_precision(variant.precision)  # the same liberty for PyTorch
    inputs = draw(w, variant.dtype)
    reference = Reference.of(w, inputs)
    ours = workloads.prepare(w, inputs, variant)
    with torch.inference_mode():
        ways = from_numpy(w, inputs) if numpy else ways_of(w, inputs, peers)
        errors = errors_of({"": ours, **ways}, reference, inputs.q.shape, w.name)
    if errors[""] > variant.tolerance:
        raise SystemExit(f"{w.name}, {variant.name}: our relative error is {errors['']:.2g}, over {variant.tolerance}")
    allowed = min(SLACK * variant.tolerance, COARSEST)
    for way in [way for way, error in errors.items() if error > allowed]:
        note(f"{w.name}: {way} left out: its relative error is {errors.pop(way):.2g}, over {allowed:.2g}")
    work = w.kv_bytes(variant.dtype) if w.is_decode else w.flops
    found = {} if w.name == workloads.SMALL.name else limits.probes(w, threads)
    return Prepared(
        ours,
        {way: call for way, call in ways.items() if way in errors},
        work / 1e9,
        "GB/s" if w.is_decode else "GFLOP/s",
        {name: probe.call for name, probe in found.items()},
        {f"error {way}": error for way, error in errors.items()} | {name: probe.work for name, probe in found.items()},
    )


def cases(variant: Variant, peers: Sequence[str], *, quick: bool) -> Cases:
    found: Cases = {
        f"{variant.name}, {w.name}": partial(prepare, w, variant, peers)
        for w in WORKLOADS
        if not quick or max(w.q_len, w.kv_len) <= QUICK_LENGTH
    }
    found[f"{variant.name}, {FROM_NUMPY}"] = partial(prepare, workloads.SMALL, variant, peers, numpy=True)
    return found


def head(variant: Variant, threads: int, peers: Sequence[str]) -> list[str]:
    title = f"{variant.name}, {timing.plural(threads)}"
    return [
        title,
        "maskattn ms",
        *(f"{peer} ms" for peer in peers),
        "best / ours",
        "floor ms",
        "of it",
        "error",
        "best's error",
    ]


def row(result: Result, variant: Variant, peers: Sequence[str]) -> list[str]:
    """The fastest way of each peer, and the fastest of all in bold letters."""
    times = {**result.theirs, **{way: [seconds] for way, seconds in result.hopeless.items()}}
    cells = []
    for peer in peers:
        of_peer = {way: seconds for way, seconds in times.items() if peer_of(way) == peer}
        text = milliseconds(of_peer[timing.fastest(of_peer)]) if of_peer else ""
        cells.append(f"**{text}**" if peer == peer_of(result.best) else text)
    floor = limits.floor(result, result.notes, variant) if result.references else None
    limit = [milliseconds([floor]), f"{floor / statistics.median(result.ours):.0%}"] if floor else ["", ""]
    errors = (f"{result.notes[f'error {way}']:.1e}" for way in ("", result.best))
    ratio = f"{statistics.median(result.ratios):.2f}"
    case = result.case.removeprefix(f"{variant.name}, ")
    return [case, milliseconds(result.ours), *cells, ratio, *limit, *errors]


def measure(args: argparse.Namespace, variants: Sequence[Variant], peers: Sequence[str]) -> None:
    groups, text = [], [f"{timing.machine()}; {args.date}medians of {args.rounds} rounds, ratios paired by round"]
    for threads in map(int, args.threads.split(",")):
        for variant in variants:
            chosen = timing.matching(cases(variant, peers, quick=args.quick), args.only)
            cells = partial(row, variant=variant, peers=peers)
            group = timing.run(chosen, lambda case, prepared: None, cells, threads, args.rounds)
            seen = {peer_of(way) for result in group for way in (*result.theirs, *result.hopeless)}
            there = [peer for peer in peers if peer in seen]
            rows = [head(variant, threads, there), *(row(result, variant, there) for result in group)]
            text.append(timing.table(rows, markdown=args.markdown or bool(args.write)) + timing.disturbed(group))
            groups.append(group)
    finish(args, groups, "\n\n".join(text))


def finish(args: argparse.Namespace, groups: Sequence[Sequence[Result]], text: str) -> None:
    print(text)
    if args.json:
        timing.write_json(args.json, groups)
    if args.plot:
        from bench.plots import plot_ratios

        plot_ratios(groups, args.plot)
    if args.write:
        timing.write_section(args.write, "compare", text)


def print_errors(args: argparse.Namespace, variants: Sequence[Variant], peers: Sequence[str]) -> None:
    """No times: relative errors on normal inputs, and with queries times eight, where few keys have all the weight."""
    print(timing.machine())
    for variant in variants:
        rows = [[variant.name, *(f"{who}, logits x{n}" for n in (1, 8) for who in ("maskattn", *peers))]]
        torch.set_float32_matmul_precision(variant.precision)
        for case in timing.matching(cases(variant, peers, quick=args.quick), args.only):
            w = next((w for w in WORKLOADS if case == f"{variant.name}, {w.name}"), None)
            if w is not None:
                rows.append([w.name, *(cell for n in (1, 8) for cell in error_cells(w, variant, peers, n))])
        print(f"\n{timing.table(rows, markdown=args.markdown)}", flush=True)


def error_cells(w: Workload, variant: Variant, peers: Sequence[str], logits: float) -> list[str]:
    inputs = draw(w, variant.dtype, logits)
    reference = Reference.of(w, inputs)
    with torch.inference_mode():
        ways = {"": workloads.prepare(w, inputs, variant), **ways_of(w, inputs, peers)}
        errors = errors_of(ways, reference, inputs.q.shape, w.name)
    least = {who: min((e for way, e in errors.items() if peer_of(way) == who), default=None) for who in ("", *peers)}
    return ["" if error is None else f"{error:.2e}" for error in least.values()]


def listed(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{option} must be of {', '.join(known)}; got {', '.join(unknown)}")
    return names


def main() -> None:
    parser = timing.parser(__doc__ or "")
    parser.add_argument("--variants", default=DEFAULT_VARIANTS, help=f"of {', '.join(VARIANTS)} (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), help="as far as installed (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"3 rounds, no lengths over {QUICK_LENGTH}")
    parser.add_argument("--errors", action="store_true", help="print errors, also with logits times 8, and no times")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bars of best peer / ours")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="replace the section 'compare' of a document")
    parser.add_argument("--date", default="", help="to stand above the tables")
    args = parser.parse_args()
    args.date = f"{args.date}; " if args.date else ""
    if args.quick:
        args.rounds = min(args.rounds, 3)
    variants = [VARIANTS[name] for name in listed(args.variants, list(VARIANTS), "--variants")]
    (print_errors if args.errors else measure)(args, variants, listed(args.peers, PEERS, "--peers"))


if __name__ == "__main__":
    main()
