"""Masks without attention: lowering one, and filling a matrix from it; NumPy's own triangle in the same table."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from bench.workloads import DOCUMENTS, WINDOW, BoolArray
from maskattn.masks import Causal, Documents, Mask, Padding, SlidingWindow

Record = Callable[..., None]
N = 4096
IDS = DOCUMENTS[:N]
MASKS: dict[str, Callable[[], Mask]] = {
    "causal": Causal,
    "window": lambda: Causal() & SlidingWindow(WINDOW - 1),
    "documents": lambda: Causal() & Documents(IDS),
    "padding": lambda: Padding(N - 1000),
}
every_mask = pytest.mark.parametrize("name", MASKS)


@cache
def expected(name: str) -> BoolArray:
    """Each mask spelled out in NumPy, independent of the classes."""
    i, j = np.arange(N)[:, None], np.arange(N)[None, :]
    if name == "padding":
        return np.broadcast_to(j < N - 1000, (N, N))
    seen = j <= i
    if name == "window":
        seen &= i - j < WINDOW
    elif name == "documents":
        seen &= IDS[:, None] == IDS
    return seen


@every_mask
def test_plan(benchmark: Any, threads: int, record_rates: Record, name: str) -> None:
    """From parameters to a plan: what a model pays once a step, for all its layers."""
    build = MASKS[name]
    plan = build().plan(N, N)
    for i in (0, 1, N // 2, N - 1):
        spans, _ = plan.spans(0, 0, i)
        assert sum(end - begin for begin, end in spans) == expected(name)[i].sum()
    benchmark.group = f"plan {N} x {N}"
    benchmark(lambda: build().plan(N, N))
    record_rates(gb=plan.nbytes / 1e9)


@every_mask
def test_to_bool(benchmark: Any, threads: int, record_rates: Record, name: str) -> None:
    mask = MASKS[name]()
    array = mask.to_bool(N, N)
    np.testing.assert_array_equal(array[0, 0], expected(name))
    benchmark.group = f"to_bool {N} x {N}"
    benchmark(mask.to_bool, N, N)
    record_rates(gb=array.nbytes / 1e9)


@every_mask
def test_to_additive(benchmark: Any, threads: int, record_rates: Record, name: str) -> None:
    mask = MASKS[name]()
    array = mask.to_additive(N, N)
    np.testing.assert_array_equal(array[0, 0], np.where(expected(name), np.float32(0), np.float32(-np.inf)))
    benchmark.group = f"to_additive {N} x {N}"
    benchmark(mask.to_additive, N, N)
    record_rates(gb=array.nbytes / 1e9)


def test_numpy_bool(benchmark: Any, record_rates: Record) -> None:
    """For scale: the causal mask as people write it."""
    benchmark.group = f"to_bool {N} x {N}"
    array = benchmark(lambda: np.tril(np.ones((N, N), np.bool_)))
    np.testing.assert_array_equal(array, expected("causal"))
    record_rates(gb=array.nbytes / 1e9)


def test_numpy_additive(benchmark: Any, record_rates: Record) -> None:
    benchmark.group = f"to_additive {N} x {N}"
    array = benchmark(lambda: np.triu(np.full((N, N), -np.inf, np.float32), 1))
    np.testing.assert_array_equal(np.isneginf(array), ~expected("causal"))
    record_rates(gb=array.nbytes / 1e9)
