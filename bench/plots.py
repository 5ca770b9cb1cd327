"""The pictures of docs/."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.side_by_side import Result, plural

if TYPE_CHECKING:
    from bench.density import Line


def plot_ratios(groups: Sequence[Sequence[Result]], path: Path) -> None:
    """Bars of best peer / ours, grouped by case, a panel for each number of threads."""
    plt = pyplot()
    threads = sorted({result.threads for group in groups for result in group})
    found = {(r.threads, *r.case.split(", ", 1)): statistics.median(r.ratios) for group in groups for r in group}
    variants = list(dict.fromkeys(variant for _, variant, _ in found))
    cases = list(dict.fromkeys(case for _, _, case in found))
    height = 0.8 / len(variants)
    size = (4 + 4 * len(threads), 1.5 + 0.14 * len(variants) * len(cases))
    figure, panels = plt.subplots(1, len(threads), figsize=size, sharey=True, squeeze=False)
    for panel, count in zip(panels[0], threads, strict=True):
        for i, variant in enumerate(variants):
            here = [(j, found[count, variant, case]) for j, case in enumerate(cases) if (count, variant, case) in found]
            places, lengths = [j + i * height for j, _ in here], [ratio - 1 for _, ratio in here]
            panel.barh(places, lengths, height, left=1, label=variant)  # to the right where ours is faster
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(plural(count))
        panel.set_xlabel("time of the best peer / ours")
        panel.set_xscale("log", base=2)
        panel.grid(axis="x", linewidth=0.3)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    panels[0][0].set_yticks([j + 0.4 - height / 2 for j in range(len(cases))], cases)
    panels[0][0].invert_yaxis()
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    save(figure, path)


def plot_density(lines: dict[str, list[Line]], path: Path) -> None:
    """Measured points and fitted lines, a panel for each number of threads."""
    plt = pyplot()
    figure, panels = plt.subplots(1, len(lines), figsize=(5 * len(lines), 4), sharey=True, squeeze=False)
    for panel, (title, fitted) in zip(panels[0], lines.items(), strict=True):
        for line in fitted:
            densities, shares = zip(*line.points, strict=True)
            [points] = panel.plot(densities, shares, "o", markersize=4)
            ends = (0, 1)
            label = f"{line.kind}: {line.intercept:+.1%} + {line.slope:.2f} d"
            panel.plot(ends, [line.intercept + line.slope * x for x in ends], color=points.get_color(), label=label)
        panel.plot((0, 1), (0, 1), color="black", linewidth=0.8, linestyle=":", label="only visible tiles")
        panel.set_title(title)
        panel.set_xlabel("density d: share of tiles in which something is seen")
        panel.legend(fontsize="small")
    panels[0][0].set_ylabel("time / full attention's")
    save(figure, path)


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")
