"""The programs in small: every case of every variant can be prepared, checked, timed and printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from bench import compare, density, side_by_side
from bench.side_by_side import Result
from bench.variants import VARIANTS, Variant
from bench.workloads import CAUSAL_512, CROSS, DECODE, DECODE_RAGGED, PACKED, PREFIX_LM, SMALL, T5_BIAS, Workload
from maskattn.masks import Causal, Documents, PrefixLM, SlidingWindow

pytestmark = pytest.mark.usefixtures("hasty")
PEERS = ("torch", "expert")  # the others take seconds to build
IDS = np.repeat([0, 1, 2], [100, 28, 128])
SMALL_SHAPE = {"q_len": 256, "kv_len": 256}
WORKLOADS = [
    replace(CAUSAL_512, **SMALL_SHAPE),
    replace(CAUSAL_512, name="grouped", q_heads=16, **SMALL_SHAPE),
    replace(CAUSAL_512, name="window", mask=Causal() & SlidingWindow(99), q_len=1024, kv_len=1024),
    replace(PACKED, mask=Causal() & Documents(IDS), **SMALL_SHAPE),
    replace(PREFIX_LM, mask=PrefixLM(64), **SMALL_SHAPE),
    replace(T5_BIAS, batch=2, q_len=64, kv_len=64),
    replace(CROSS, batch=3, kv_lengths=CROSS.kv_lengths[:3]),
    DECODE[0],
    DECODE[4],
    DECODE_RAGGED[2],
    SMALL,
]


@pytest.mark.parametrize(
    ("workload", "variant"),
    [
        *((w, VARIANTS[name]) for w in WORKLOADS for name in ("float32", "bfloat16")),
        *((WORKLOADS[0], VARIANTS[name]) for name in ("float32 high", "float32 medium", "float16")),
    ],
    ids=lambda x: x.name,
)
def test_compare(workload: Workload, variant: Variant) -> None:
    result = timed(lambda: compare.prepare(workload, variant, PEERS))
    row = compare.row(result, variant, PEERS)
    assert len(row) == len(compare.head(variant, 1, PEERS))
    assert any("**" in cell for cell in row)


def timed(prepare: Any) -> Result:
    [result] = side_by_side.run({"case": prepare}, lambda case, prepared: None, lambda r: [], threads=1, rounds=1)
    return result


def test_from_numpy() -> None:
    for variant in VARIANTS.values():
        prepared = compare.prepare(SMALL, variant, PEERS, numpy=True)
        [way] = prepared.theirs.values()
        assert isinstance(way(), np.ndarray)


def test_ways_that_are_too_coarse_do_not_count() -> None:
    strict = replace(VARIANTS["float32 medium"], dtype=VARIANTS["bfloat16"].dtype, tolerance=1e-9)
    with pytest.raises(SystemExit, match="relative error"):
        compare.prepare(SMALL, strict, PEERS)


def test_every_workload_has_a_way() -> None:
    for variant in VARIANTS.values():
        names = {name.split(", ", 1)[1] for name in compare.cases(variant, PEERS, quick=False)}
        assert names == {w.name for w in compare.WORKLOADS} | {compare.FROM_NUMPY}
        assert len(compare.cases(variant, PEERS, quick=True)) < len(names)


def test_density_and_plots(tmp_path: Path) -> None:
    variant = VARIANTS["float32"]
    results = side_by_side.run(density.cases(variant, 256), lambda case, prepared: None, density.row, 1, 1)
    assert all(0 < result.notes["density"] <= 1 for result in results)
    lines = [density.fit(kind, results) for kind in density.KINDS]
    plots = pytest.importorskip("bench.plots")
    pytest.importorskip("matplotlib")
    plots.plot_density({"1 thread": lines}, tmp_path / "density.png")
    named = [replace(result, case=f"float32, {result.case}") for result in results]
    plots.plot_ratios([named], tmp_path / "ratios.png")
    assert (tmp_path / "density.png").stat().st_size > 0
    assert (tmp_path / "ratios.png").stat().st_size > 0


def test_fit() -> None:
    """A line of slope 1.1 over 3% is found again."""
    results = []
    for density_ in (0.1, 0.3, 0.7):
        theirs = {"full attention": [1.0]}
        results.append(Result("window 1", 1, "", 0, {"density": density_}, [0.03 + 1.1 * density_], theirs))
    line = density.fit("window", results)
    assert line.intercept == pytest.approx(0.03)
    assert line.slope == pytest.approx(1.1)


def test_write_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t -->\nold\n<!-- /t -->\nb\n")
    side_by_side.write_section(page, "t", "new")
    assert page.read_text() == "a\n<!-- t -->\n\nnew\n\n<!-- /t -->\nb\n"
    with pytest.raises(SystemExit, match="must have the lines"):
        side_by_side.write_section(page, "other", "new")
