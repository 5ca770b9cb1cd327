"""bench.cuda without a device: in small and on the CPU its cases mean the same to both sides."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from bench import cuda, cuda_cases
from bench.cuda_cases import Case
from maskattn.masks import Causal

SMALL = [
    Case("causal", 256, 256, Causal(), lambda b, h, q, k: k <= q, q_heads=2, kv_heads=2),
    *(replace(make(512, **size), q_heads=2, kv_heads=2) for make, size in (
        (cuda_cases.window, {"left": 99}),
        (cuda_cases.documents, {"mean": 128}),
        (cuda_cases.block_sparse, {"size": 64, "density": 0.3}),
    )),
    Case("decode", 1, 300, None, batch=2, q_heads=4, kv_heads=2),
    Case("float32", 128, 128, Causal(), lambda b, h, q, k: k <= q, q_heads=2, kv_heads=1, dtype="float32"),
]  # fmt: skip


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_way_computes_the_same(case: Case) -> None:
    prepared = cuda_cases.prepare(case, "cpu")
    errors = cuda_cases.check(case, prepared)
    assert "sdpa math" in errors
    assert max(errors.values()) < (2e-2 if case.dtype == "bfloat16" else 1e-5)
    assert prepared.work > 0


def test_a_wrong_result_is_refused() -> None:
    case = SMALL[0]
    prepared = cuda_cases.prepare(case, "cpu")
    with pytest.raises(SystemExit, match="the error of maskattn must be below"):
        cuda_cases.check(replace(case, mask=cuda_cases.window(256, 3).mask), prepared)


def test_cases_are_those_of_the_goals() -> None:
    names = [case.name for case in cuda_cases.cases()]
    assert len(set(names)) == len(names)
    assert {case.dtype for case in cuda_cases.cases()} == {"bfloat16", "float32"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_it_needs_a_device(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.cuda"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        cuda.main()
