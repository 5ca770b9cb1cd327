"""The picture of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.generation.measure import Row
from bench.generation.sides import OURS
from bench.plots import pyplot, save


def plot_steps(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds a step: a bar of ours, a line at the floor, a dot at the best peer; a panel for each dtype."""
    plt = pyplot()
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    cases = list(dict.fromkeys((row.model, row.workload) for row in rows))
    size = (2.5 + 3.2 * len(dtypes), 1.5 + 0.28 * len(cases))
    figure, panels = plt.subplots(1, len(dtypes), figsize=size, sharey=True, squeeze=False)
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        here = [row for row in rows if row.dtype == dtype]
        places = [cases.index((row.model, row.workload)) for row in here]
        panel.barh(places, [_ms(row.times[OURS].step) for row in here], 0.6, label="maskattn")
        floors = [_ms(row.floors) for row in here]
        panel.plot(floors, places, "|", color="black", markersize=12, label="floor: the weights are read once")
        others = [(place, row, best) for place, row in zip(places, here, strict=True) if (best := row.best("step"))]
        times = [_ms(row.times[best].step) for _, row, best in others]
        panel.plot(times, [place for place, _, _ in others], "o", color="tab:red", markersize=5, label="best peer")
        for (place, _, best), time in zip(others, times, strict=True):
            panel.annotate(best, (time, place), (5, -3), textcoords="offset points", fontsize=6)
        panel.set_title(dtype)
        panel.set_xlabel("ms a step")
        panel.set_xscale("log")
        panel.margins(x=0.25)
        panel.grid(axis="x", linewidth=0.3)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    panels[0][0].set_yticks(range(len(cases)), [", ".join(case) for case in cases])
    panels[0][0].invert_yaxis()
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    save(figure, path)


def _ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3
