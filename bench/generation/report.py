"""What a run found, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.generation.measure import LeftOut, Row
from bench.generation.sides import OURS
from bench.side_by_side import NOISY

HEAD = (
    "model", "dtype", "source or prompt", "ms a step", "floor", "of it", "best peer", "best / ours", "ms to the first",
    "best peer", "best / ours", "outside the core", "load, s", "to first token, s", "MB, peak / weights",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    ours = row.times[OURS]
    return [
        row.model,
        row.dtype,
        row.workload,
        milliseconds(ours.step),
        milliseconds(row.floors),
        f"{row.share:.2f}",
        *_against(row, "step"),
        milliseconds(ours.first),
        *_against(row, "first"),
        f"{row.outside:.0%}",
        f"{row.load_s:.2f}",
        f"{row.start_s:.2f}",
        f"{row.peak_mb:.0f} / {row.weights_mb:.0f}",
    ]


def _against(row: Row, what: str) -> list[str]:
    best = row.best(what)
    if best is None:
        return ["", ""]
    return [f"{best} {milliseconds(getattr(row.times[best], what))}", f"**{row.ratio(what):.2f}**"]


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.3g}"


def line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def heading(texts: Sequence[str] = HEAD, words: int = 3) -> str:
    """The first ``words`` columns hold words, the others figures."""
    return f"{line(texts)}\n|{'---|' * words}{'--:|' * (len(texts) - words)}"


def everyone(rows: Sequence[Row]) -> str:
    """Milliseconds a step / to the first token, of each side."""
    names = list(dict.fromkeys(name for row in rows for name in row.times))
    lines = [heading(["model", "dtype", "source or prompt", *names])]
    for row in rows:
        found = [row.times.get(name) for name in names]
        texts = [f"{milliseconds(times.step)} / {milliseconds(times.first)}" if times else "" for times in found]
        lines.append(line([row.model, row.dtype, row.workload, *texts]))
    return "\n".join(lines)


def disturbed(rows: Sequence[Row]) -> str:
    named = "; ".join(f"{r.model}, {r.dtype}, {r.workload} ({r.others:.0%})" for r in rows if r.others > NOISY)
    return f"\nDisturbed by other processes, measure again: {named}\n" if named else ""


def missing(left_out: LeftOut) -> str:
    """Who took no part where, and why."""
    lines = [f"- {name}: {reason} ({'; '.join(where)})" for (name, reason), where in left_out.items()]
    return "\n".join(["\nLeft out:\n", *lines]) if lines else "\nNobody was left out."


def as_json(row: Row) -> dict[str, Any]:
    """Every round's seconds, and what is told of them."""
    told = {"floor_ms": statistics.median(row.floors) * 1e3, "share": row.share}
    for what in ("step", "first"):
        told |= {f"best_{what}": row.best(what), f"ratio_{what}": row.ratio(what)}
    return vars(row) | {"times": {name: vars(times) for name, times in row.times.items()}} | told
