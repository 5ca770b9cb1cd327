"""The programs in small: every case of every variant can be prepared, checked, timed and printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
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


TINY_MARIAN = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "vocab_size": 300, "pad_token_id": 299, "decoder_start_token_id": 299,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Arguments of a quick run of bench.generation."""
    pytest.importorskip("transformers")
    import torch

    from bench.generation import shapes

    kind, settings = shapes.SHAPES["Marian"]
    monkeypatch.setitem(shapes.SHAPES, "Marian", (kind, settings | TINY_MARIAN))
    threads = torch.get_num_threads()
    yield ["--models", "Marian", "--rounds", "1", "--root", str(tmp_path), "--threads", "1"]
    torch.set_num_threads(threads)


def test_generation(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.generation.__main__ import main

    pytest.importorskip("matplotlib")
    page, picture, figures = (tmp_path / name for name in ("page.md", "steps.png", "times.json"))
    page.write_text("<!-- generation -->\n<!-- /generation -->\n")
    outputs = ["--write", str(page), "--plot", str(picture), "--json", str(figures)]
    # An interpreter that has no library at all: its peer is named as missing.
    nobody = ["--peers", "transformers,ctranslate2", "--python", f"ctranslate2={sys.executable}"]
    main([*tiny, "--dtypes", "float32,int8", "--workloads", "^32$|beam", *nobody, *outputs])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| Marian |")]
    assert [line.split(" | ")[1:3] for line in rows[:4]] == [
        [dtype, workload] for dtype in ("float32", "int8") for workload in ("32", "beam 4")
    ]
    assert "- ctranslate2: " in printed or "ctranslate2" in rows[-1]
    assert page.read_text().count("| Marian |") == 2 * 4
    assert picture.stat().st_size > 0
    [*_, last] = json.loads(figures.read_text())
    assert set(last["times"]) >= {"maskattn", "transformers"}
    assert 0 < last["outside"] < 1
    assert last["step_bytes"] > 0


def test_accuracy_of_generation(tiny: list[str], tmp_path: Path) -> None:
    from bench.generation.__main__ import main

    page = tmp_path / "page.md"
    page.write_text("<!-- generation accuracy -->\n<!-- /generation accuracy -->\n")
    main([*tiny, "--accuracy", "--dtypes", "bfloat16", "--peers", "transformers", "--write", str(page)])
    errors = {}
    for line in page.read_text().splitlines():
        if line.startswith("| Marian |"):
            _, dtype, side, logits, likely, _ = line.strip("| ").split(" | ")
            errors[dtype, side] = float(logits), float(likely)
    assert max(errors["float32", "maskattn"]) < 1e-5
    assert 1e-4 < errors["bfloat16", "maskattn"][0] < 2 * errors["bfloat16", "transformers"][0]


def test_generation_refuses_unknown_names(tiny: list[str]) -> None:
    from bench.generation.__main__ import main

    for option, wrong in (("--models", "Marian-XXL"), ("--dtypes", "int3"), ("--peers", "abacus"), ("--python", "a=b")):
        with pytest.raises(SystemExit, match=f"{option} must be of .*; got {wrong.partition('=')[0]}"):
            main([*tiny, option, wrong])
    with pytest.raises(SystemExit, match=r"--workloads must match one of .*32.*; got 'long'"):
        main([*tiny, "--workloads", "long"])


def test_times_of_generation() -> None:
    """Ratios and shares are paired by round, and the best peer may differ between first token and steps."""
    from bench.generation.measure import Row, Times

    row = Row("model", "int8", "32", 1, step_bytes=10, rates=[10.0, 5.0])
    row.times = {
        "maskattn": Times([1.0, 2.0], [2.0, 4.0]),
        "a": Times([9.0, 9.0], [3.0, 6.0]),
        "b": Times([2.0, 4.0], [8.0, 8.0]),
    }
    assert (row.best("step"), row.ratio("step")) == ("a", 1.5)
    assert (row.best("first"), row.ratio("first")) == ("b", 2.0)
    assert row.share == 0.5


def test_time_inside_the_core() -> None:
    """What runs in the core is counted once, and the functions are put back."""
    from bench.generation import core_time
    from maskattn import _core, linear

    before = _core.packed_linear
    packed = linear.pack(np.ones((64, 64), np.float32))
    with core_time.watched() as clock:
        idle = clock.inside
        linear.linear(np.ones((200, 64), np.float32), packed)
    assert idle == 0 < clock.inside < clock.whole
    assert _core.packed_linear is before
