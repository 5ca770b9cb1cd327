"""Masks measured against other libraries, memory's bandwidth and full attention, side by side in one process.

    pip install ".[parity]" && python -m bench.mask_ratios --markdown

Cases: ``plan`` against a compiled create_block_mask; ``to_additive`` and ``to_bool`` against the fastest way in NumPy,
PyTorch or transformers (mask_ways.py) and against a fill of the same array; what attention under a mask costs for each
tile that it must visit, against full attention; ``strategy="auto"`` against "mask" and "delete"; and, in a process of
its own, a plan of a million positions. How it is timed: side_by_side.py.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

try:
    from bench import side_by_side as timing  # PyTorch first
except ModuleNotFoundError:
    raise SystemExit('mask_ratios.py compares with PyTorch, which is not installed: pip install ".[parity]"') from None

import maskattn
from bench import long_plan, workloads
from bench import mask_ways as ways
from bench.side_by_side import Cases, Cells, Prepared, Result, fastest, milliseconds
from bench.workloads import Workload
from maskattn.masks import BlockSparse, GlobalTokens, KeyPadding, Mask, Padding, QueryPadding, SlidingWindow

LENGTHS = (8192, 16384)
BLOCK = 64


def plan_case(name: str, n: int, *, compiled: bool = True) -> Prepared:
    """From a mask's parameters to what kernels need, on both sides."""
    mask = ways.mask_case(name, n)
    size = mask.build().plan(n, n).nbytes
    return Prepared(lambda: mask.build().plan(n, n), ways.block_masks(mask, compiled=compiled), notes={"bytes": size})


def array_case(name: str, dtype: Any, n: int) -> Prepared:
    """Lowering and filling memory that was there before."""
    mask, out = ways.mask_case(name, n), np.empty((1, 1, n, n), dtype)

    def fill() -> Any:
        return mask.build().to_bool(n, n, out=out) if out.dtype == np.bool_ else mask.build().to_additive(n, n, out=out)

    return Prepared(fill, ways.array_ways(mask, dtype), out.nbytes / 1e9, "GB/s", references=ways.fills(out[0, 0]))


def cost_case(workload: Workload) -> Prepared:
    """Attention under a mask; what is to be expected is full attention's time times the share of tiles visited."""
    inputs = workloads.draw(workload)
    full = workloads.prepare(replace(workload, mask=None), inputs)
    attend = workloads.prepare(workload, inputs)
    assert workload.mask is not None
    plan = workload.mask.plan(workload.q_len, workload.kv_len)
    shares = {str(size): float((plan.tiles(size, size) > 0).mean()) for size in (64, 128)}
    out = attend()
    workloads.check(workload, inputs, out)  # a benchmark must not time a wrong answer
    return Prepared(attend, {"full attention": full}, notes=shares)


def strategy_case(workload: Workload) -> Prepared:
    inputs, mask = workloads.draw(workload), workload.mask
    assert mask is not None
    plan = mask.plan(workload.q_len, workload.kv_len)
    attend = partial(maskattn.attention, inputs.q, inputs.k, inputs.v, mask=plan)
    calls = {name: partial(attend, strategy=name) for name in ("auto", "mask", "delete")}
    return Prepared(calls.pop("auto"), calls)


def sparse(n: int) -> dict[str, Mask]:
    """Attention patterns of long-document models; blocks of 64, seeded."""
    rng = np.random.default_rng(n)
    blocks = -(-n // BLOCK)
    few = np.zeros((blocks, blocks), np.bool_)
    for row in few:
        row[rng.choice(blocks, size=min(3, blocks), replace=False)] = True
    window = SlidingWindow(3 * BLOCK // 2, 3 * BLOCK // 2)
    return {
        "BigBird": BlockSparse(few, BLOCK) | GlobalTokens(range(2 * BLOCK)) | window,  # arXiv:2007.14062
        "block-sparse 12%": BlockSparse((rng.random((blocks, blocks)) < 0.112) | np.eye(blocks, dtype=np.bool_), BLOCK),
    }


def self_attention(name: str, n: int, mask: Mask, rows: int | None = None) -> Workload:
    return Workload(name, 1, 8, 8, n if rows is None else rows, n, 64, mask)


def strategies(n: int) -> list[Workload]:
    rng = np.random.default_rng(n)
    keys, rows = (rng.random(n) < 0.5 for _ in range(2))
    return [
        self_attention("half of the keys, scattered", n, KeyPadding(keys)),
        self_attention("the same, 64 rows", n, KeyPadding(keys), min(n, 64)),
        self_attention("the same, one row", n, KeyPadding(keys), 1),
        self_attention("half of keys and rows, scattered", n, KeyPadding(keys) & QueryPadding(rows)),
        self_attention("3% of the keys, scattered", n, KeyPadding(rng.random(n) < 0.97)),
        self_attention("an eighth of the keys, at the end", n, Padding(n - n // 8)),
    ]


def kinds(lengths: Sequence[int] = LENGTHS, *, compiled: bool = True) -> dict[str, Cases]:
    """The cases of each table, by name."""
    n = lengths[0]
    plan_cases = {
        f"plan {name} {length}": partial(plan_case, name, length, compiled=compiled)
        for length in lengths
        for name in ways.PLANS
    }
    arrays: dict[str, Cases] = {
        kind: {f"{kind} {name} {n} x {n}": partial(array_case, name, dtype, n) for name in ways.ARRAYS}
        for kind, dtype in (("to_additive", np.float32), ("to_bool", np.bool_))
    }
    window = ways.mask_case("window", n).build()
    documents = ways.mask_case("documents", n).build()
    masks = {f"window {workloads.WINDOW}": window, "documents": documents, **sparse(n)}
    costs = {f"cost of {name} {n}": partial(cost_case, self_attention(name, n, mask)) for name, mask in masks.items()}
    chosen = {f"strategy, {w.name}": partial(strategy_case, w) for w in strategies(min(n, 4096))}
    return {"plan": plan_cases, **arrays, "cost": costs, "strategy": chosen}


def check_plan(case: str, prepared: Prepared) -> None:
    """The same tiles are there, and the same are full; n is a multiple of the tile size, as create_block_mask pads."""
    plan = prepared.ours()
    for name, way in prepared.theirs.items():
        block_mask = way()
        tiles = plan.tiles(*block_mask.BLOCK_SIZE)
        full = int(block_mask.full_kv_num_blocks.sum())
        if not np.array_equal(tiles > 0, block_mask.to_dense().numpy() > 0) or int((tiles == 2).sum()) != full:
            raise SystemExit(f"{case}: maskattn and {name} differ")


def check_array(case: str, prepared: Prepared) -> None:
    ours = prepared.ours()[0, 0]
    for name, way in prepared.theirs.items():
        theirs = np.asarray(way()).reshape(-1, ours.shape[1])
        equal = np.array_equal if ours.dtype == np.bool_ else equal_additive
        if not equal(ours, np.broadcast_to(theirs, ours.shape)):
            raise SystemExit(f"{case}: maskattn and {name} differ")


def equal_additive(ours: Any, theirs: Any) -> bool:
    """transformers hides with the lowest finite number."""
    hidden = np.isneginf(ours)
    return bool(np.array_equal(hidden, theirs <= np.finfo(theirs.dtype).min) and not theirs[~hidden].any())


def check_strategy(case: str, prepared: Prepared) -> None:
    for name, way in prepared.theirs.items():
        if not (np.abs(prepared.ours() - way()) <= workloads.TOLERANCE).all():
            raise SystemExit(f"{case}: auto and {name} differ by more than {workloads.TOLERANCE}")


def against_peers(result: Result) -> list[str]:
    name = f"{milliseconds(result.theirs[result.best])} ({result.best})"
    return [result.case, milliseconds(result.ours), name, f"{statistics.median(result.ratios):.3g}"]


def plan_row(result: Result) -> list[str]:
    return [*against_peers(result), f"{result.notes['bytes'] / 1e6:.3g}"]


def array_row(result: Result) -> list[str]:
    rate = result.work / statistics.median(result.ours)
    fill = result.references[fastest(result.references)]
    share = statistics.median(b / a for a, b in zip(result.ours, fill, strict=True))
    return [*against_peers(result), f"{rate:.3g}", f"{share:.0%}"]


def cost_row(result: Result) -> list[str]:
    share = 1 / statistics.median(result.ratios)
    by_size = (f"{share / tiles:.2f} ({tiles:.1%})" for tiles in result.notes.values())
    return [result.case, milliseconds(result.ours), milliseconds(result.theirs[result.best]), *by_size]


def strategy_row(result: Result) -> list[str]:
    cells = [milliseconds(result.theirs.get(name) or [result.hopeless[name]]) for name in ("mask", "delete")]
    return [result.case, *cells, milliseconds(result.ours), f"{1 / statistics.median(result.ratios):.2f}"]


TABLES: dict[str, tuple[list[str], timing.Check, Cells]] = {
    "plan": (["plan", "maskattn ms", "other ms (way)", "times faster", "MB"], check_plan, plan_row),
    **{
        kind: ([kind, "maskattn ms", "other ms (way)", "times faster", "GB/s", "of a fill"], check_array, array_row)
        for kind in ("to_additive", "to_bool")
    },
    "cost": (
        ["attention", "ms", "full ms", "time / tiles of 64 (tiles)", "time / tiles of 128 (tiles)"],
        lambda case, prepared: None,  # checked when it was prepared
        cost_row,
    ),
    "strategy": (["strategy", "mask ms", "delete ms", "auto ms", "auto / the faster"], check_strategy, strategy_row),
}


def long_plans(threads: Sequence[int]) -> list[list[str]]:
    """A process each: memory that was freed is not always given back, and would hide how far it rises."""
    rows = [["plan of causal & window & documents", "s", "MB", "memory rises by MB"]]
    for count in threads:
        command = [sys.executable, "-m", long_plan.__name__, "--threads", str(count)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures = [f"{found[name]:.3g}" if found[name] is not None else "?" for name in found]
        rows.append([f"{long_plan.POSITIONS} positions, {timing.plural(count)}", *figures])
    return rows


def main() -> None:
    args = timing.parser(__doc__ or "").parse_args()
    threads = [int(n) for n in args.threads.split(",")]
    named = {name: prepare for cases in kinds().values() for name, prepare in cases.items()}
    wanted = timing.matching({**named, "long plan": plan_case}, args.only)
    print(f"{timing.machine()}; medians of {args.rounds} rounds, ratios paired by round")
    everything = []
    for count in threads:
        for kind, cases in kinds().items():
            head, check, cells = TABLES[kind]
            if chosen := {name: cases[name] for name in cases if name in wanted}:
                results = timing.run(chosen, check, cells, count, args.rounds)
                everything.append(results)
                print(f"\n{timing.plural(count)}:\n")
                print(timing.table([head, *map(cells, results)], markdown=args.markdown))
                print(timing.disturbed(results), end="", flush=True)
    if "long plan" in wanted:
        print()
        print(timing.table(long_plans(threads), markdown=args.markdown))
    if args.json:
        timing.write_json(args.json, everything)


if __name__ == "__main__":
    main()
