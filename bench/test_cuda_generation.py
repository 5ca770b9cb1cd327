"""bench.cuda_generation without a device; tests/cuda runs it on an emulated one."""

from __future__ import annotations

import sys

import pytest

from bench import cuda_generation


def test_it_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "maskattn._cuda", None)
    with pytest.raises(SystemExit, match=r"needs a CUDA device .*: not run \(maskattn was built without CUDA\)"):
        cuda_generation.main([])


def test_a_side_that_ends_early_is_refused() -> None:
    class Silent:
        def write(self, sources: object, tokens: int, beams: int) -> list[list[int]]:
            return [[5]]

    assert cuda_generation.seconds(Silent(), None, 1) >= 0
    with pytest.raises(SystemExit, match=r"must write 3 tokens, got \[1\]"):
        cuda_generation.seconds(Silent(), None, 3)


def test_a_row_says_what_part_of_the_bandwidth_a_step_needs() -> None:
    case = cuda_generation.Case("Marian", "bfloat16", 16, 256, 64)
    times = {"maskattn": cuda_generation.Times([0.03, 0.01, 0.02], [0.004, 0.002, 0.001])}
    (row,) = cuda_generation.lines(case, times, 3_000_000_000, 4.8e12)
    assert row == "| Marian | bfloat16 | 16 | maskattn | 20.00 | 2.000 | 31% |"
