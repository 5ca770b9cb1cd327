"""bench.cuda_generation on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cuda_generation
from bench.generation import shapes
from tiny_families import config, write


@pytest.mark.parametrize("name", ["llama", "marian"])
def test_generation_is_timed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, config(name, eos_token_id=2))
    monkeypatch.setitem(shapes.SHAPES, name, ("", {}))
    monkeypatch.setattr(shapes, "build", lambda model, root: path)
    figures = tmp_path / "times.json"
    sizes = ["--length", "5", "--tokens", "3", "--copied", "4096", "--batches", "1", "3", "--rounds", "2"]
    cuda_generation.main(["--models", name, "--dtypes", "float32", *sizes, "--json", str(figures)])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {name} |")]
    assert [row.split(" | ")[1:4] for row in printed] == [["float32", batch, "maskattn"] for batch in "13"]
    found = json.loads(figures.read_text())
    assert [case["batch"] for case in found] == [1, 3]
    for case in found:
        assert case["step_bytes"] > 0
        assert case["bandwidth"] > 0
        times = case["times"]["maskattn"]
        assert len(times["first"]) == len(times["step"]) == 2
        assert min(times["first"]) > 0
