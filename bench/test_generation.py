"""The program that times generation, in small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from bench.generation import core_time, shapes
from bench.generation.__main__ import main
from bench.generation.measure import Row, Times
from maskattn import _core, linear

TINY_MARIAN = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
    "vocab_size": 300, "pad_token_id": 299, "decoder_start_token_id": 299,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Arguments of a quick run of bench.generation."""
    kind, settings = shapes.SHAPES["Marian"]
    monkeypatch.setitem(shapes.SHAPES, "Marian", (kind, settings | TINY_MARIAN))
    threads = torch.get_num_threads()
    yield ["--models", "Marian", "--rounds", "1", "--root", str(tmp_path), "--threads", "1"]
    torch.set_num_threads(threads)


def test_generation(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page, picture, figures = (tmp_path / name for name in ("page.md", "steps.png", "times.json"))
    page.write_text("<!-- generation -->\n<!-- /generation -->\n")
    outputs = ["--write", str(page), "--plot", str(picture), "--json", str(figures)]
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    peers = ["--peers", "transformers,ctranslate2", "--python", f"ctranslate2={broken}"]
    main([*tiny, "--dtypes", "float32,int8", "--workloads", "^32$|beam", *peers, *outputs])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| Marian |")]
    assert [line.split(" | ")[1:3] for line in rows[:4]] == [
        [dtype, workload] for dtype in ("float32", "int8") for workload in ("32", "beam 4")
    ]
    assert "- ctranslate2: process ended with 3 (Marian float32; Marian int8)" in printed
    assert page.read_text().count("| Marian |") == 2 * 4
    assert picture.stat().st_size > 0
    [*_, last] = json.loads(figures.read_text())
    assert set(last["times"]) >= {"maskattn", "transformers"}
    assert 0 < last["outside"] < 1
    assert last["step_bytes"] > 0


def test_accuracy_of_generation(tiny: list[str], tmp_path: Path) -> None:
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
    for option, wrong in (("--models", "Marian-XXL"), ("--dtypes", "int3"), ("--peers", "abacus"), ("--python", "a=b")):
        with pytest.raises(SystemExit, match=f"{option} must be of .*; got {wrong.partition('=')[0]}"):
            main([*tiny, option, wrong])
    with pytest.raises(SystemExit, match="--python must name an interpreter, got '/nowhere'"):
        main([*tiny, "--python", "ctranslate2=/nowhere"])
    with pytest.raises(SystemExit, match=r"--workloads must match one of .*32.*; got 'long'"):
        main([*tiny, "--workloads", "long"])


def test_times_of_generation() -> None:
    """Ratios and shares are paired by round, and the best peer may differ between first token and steps."""
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
    before = _core.packed_linear
    packed = linear.pack(np.ones((64, 64), np.float32))
    with core_time.watched() as clock:
        idle = clock.inside
        linear.linear(np.ones((200, 64), np.float32), packed)
    assert idle == 0 < clock.inside < clock.whole
    assert _core.packed_linear is before
