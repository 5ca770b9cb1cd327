"""What a mask costs: time against the share of tiles in which something is seen, and what is left where nothing is.

    pip install ".[parity]" && python -m bench.density --plot density.png

Windows, packed documents of one length, and random blocks of 64 and 128, over 4096 positions; in the same rounds full
attention. A straight line is laid through each kind's points, ``time = a + b * density``; where the cost of a mask is
its visible tiles, ``a`` is nothing. The aim: under 5% of full attention's time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

try:
    from bench import side_by_side as timing  # PyTorch first
except ModuleNotFoundError:
    raise SystemExit('bench.density times beside PyTorch, which is not installed: pip install ".[parity]"') from None

from bench import workloads
from bench.side_by_side import Cases, Prepared, Result, milliseconds
from bench.variants import VARIANTS, Variant
from bench.workloads import Workload
from maskattn.masks import BlockSparse, Documents, Mask, SlidingWindow

LENGTH, HEADS, HEAD_DIM = 4096, 8, 64
GOAL = 0.05


def windows(share: float, n: int) -> Mask:
    """Both directions: a triangle's tiles on the diagonal would be half of what is seen."""
    reach = max(1, round(n * (1 - (1 - share) ** 0.5)))
    return SlidingWindow(reach, reach)


def documents(share: float, n: int) -> Mask:
    return Documents(np.arange(n) // max(1, round(n * share)))


def blocks(share: float, n: int, size: int) -> Mask:
    count = -(-n // size)
    random = np.random.default_rng(count).random((count, count))
    return BlockSparse((random < share) | np.eye(count, dtype=np.bool_), size)


@dataclass(frozen=True)
class Kind:
    build: Callable[[float, int], Mask]
    tile: int  # in which its density is counted
    shares: Sequence[float]


KINDS = {
    "window": Kind(windows, 64, (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)),
    "documents": Kind(documents, 64, (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)),
    "blocks of 64": Kind(partial(blocks, size=64), 64, (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)),
    "blocks of 128": Kind(partial(blocks, size=128), 128, (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)),
}


def prepare(mask: Mask, tile: int, variant: Variant, n: int) -> Prepared:
    """Ours is the masked call, the other side full attention."""
    w = Workload("density", 1, HEADS, HEADS, n, n, HEAD_DIM, mask)
    full = Workload("density", 1, HEADS, HEADS, n, n, HEAD_DIM)
    inputs = workloads.draw(w, variant.dtype)
    ours = workloads.prepare(w, inputs, variant)
    workloads.check(w, inputs, ours(), variant)
    density = float((mask.plan(n, n).tiles(tile, tile) > 0).mean())
    return Prepared(ours, {"full attention": workloads.prepare(full, inputs, variant)}, notes={"density": density})


def cases(variant: Variant, n: int) -> Cases:
    return {
        f"{name} {share:.3g}": partial(prepare, kind.build(share, n), kind.tile, variant, n)
        for name, kind in KINDS.items()
        for share in kind.shares
    }


def share_of_full(result: Result) -> float:
    """Of full attention's time, paired by round."""
    return float(np.median([1 / ratio for ratio in result.ratios]))


def row(result: Result) -> list[str]:
    times = milliseconds(result.ours), milliseconds(result.theirs[result.best])
    return [result.case, f"{result.notes['density']:.1%}", *times, f"{share_of_full(result):.1%}"]


@dataclass(frozen=True)
class Line:
    """``share = intercept + slope * density``, in units of full attention's time."""

    kind: str
    points: list[tuple[float, float]]
    intercept: float
    slope: float


def fit(kind: str, results: Sequence[Result]) -> Line:
    """Least squares of relative deviations: a point of 2% counts as one of 70% does."""
    points = [(r.notes["density"], share_of_full(r)) for r in results if r.case.startswith(f"{kind} ")]
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    return Line(kind, points, float(intercept), float(slope))


def main() -> None:
    parser = timing.parser(__doc__ or "")
    parser.add_argument("--variant", default="float32", choices=VARIANTS, help="(default: %(default)s)")
    parser.add_argument("--length", type=int, default=LENGTH, help="positions (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="points and lines")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="replace the section 'density' of a document")
    args = parser.parse_args()
    variant = VARIANTS[args.variant]
    groups = []
    text = [f"{timing.machine()}; {variant.name}, {args.length} positions, medians of {args.rounds} rounds"]
    lines: dict[str, list[Line]] = {}
    for threads in map(int, args.threads.split(",")):
        chosen = timing.matching(cases(variant, args.length), args.only)
        group = timing.run(chosen, lambda case, prepared: None, row, threads, args.rounds)
        groups.append(group)
        kinds = [kind for kind in KINDS if sum(r.case.startswith(f"{kind} ") for r in group) > 2]
        fitted = lines[timing.plural(threads)] = [fit(kind, group) for kind in kinds]
        head = [timing.plural(threads), "intercept, of full attention", "slope"]
        rows = [head, *([line.kind, f"{line.intercept:.1%}", f"{line.slope:.2f}"] for line in fitted)]
        text.append(timing.table(rows, markdown=args.markdown or bool(args.write)) + timing.disturbed(group))
        for line in fitted:
            if line.intercept > GOAL:
                print(f"{line.kind}: the intercept is over {GOAL:.0%}", file=sys.stderr)
    print("\n\n".join(text))
    if args.json:
        timing.write_json(args.json, groups)
    if args.plot:
        from bench.plots import plot_density

        plot_density(lines, args.plot)
    if args.write:
        timing.write_section(args.write, "density", "\n\n".join(text))


if __name__ == "__main__":
    main()
