"""What the benchmarks share: every instruction set, dtype and thread count, and a check before every timing.

``pytest bench`` runs them all; ``-k "decode and avx512 and bfloat16"`` picks; ``--benchmark-max-time=0.2`` is a quick
look; ``--benchmark-json=FILE`` keeps GFLOP/s and GB/s; ``--benchmark-disable`` only checks the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from typing import Any

import pytest

import maskattn
from bench.variants import VARIANTS, Variant
from bench.workloads import Inputs, Reference, Workload, draw, prepare

THREADS = (1, 2) if maskattn.info()["openmp"] else (1,)


@pytest.fixture(params=maskattn.runnable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = maskattn.info()["isa"]
    maskattn.set_isa(request.param)
    yield request.param
    maskattn.set_isa(before)


@pytest.fixture(params=THREADS, ids=lambda n: f"{n}t")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set for the process: it is the way that reaches every call, also those without a ``threads`` argument."""
    before = maskattn.num_threads()
    maskattn.set_num_threads(request.param)
    yield request.param
    maskattn.set_num_threads(before)


# "high" is "highest" where no tiles multiply: the same kernels.
TIMED = [v for v in VARIANTS.values() if v.precision != "high" or "amx" in maskattn.runnable_isas()]


@pytest.fixture(params=TIMED, ids=attrgetter("name"))
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@cache
def drawn(workload: Workload, variant: Variant) -> tuple[Inputs, Reference]:
    """Made once for all instruction sets and thread counts."""
    inputs = draw(workload, variant.dtype)
    return inputs, Reference.of(workload, inputs)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """side_by_side.py times each call once and does not wait: for tests of what is around the times."""
    timing = pytest.importorskip("bench.side_by_side")
    for name in ("BURST", "PAUSE", "WARM"):
        monkeypatch.setattr(timing, name, 0)


@pytest.fixture
def record_rates(benchmark: Any) -> Callable[..., None]:
    """Puts each amount of a call, and the amount per second, into the report (``--benchmark-json``)."""

    def record(**amounts: float) -> None:
        benchmark.extra_info.update(amounts)
        if benchmark.stats:  # there are none under --benchmark-disable
            median = benchmark.stats["median"]
            benchmark.extra_info.update({f"{name}_per_s": amount / median for name, amount in amounts.items()})

    return record


@pytest.fixture
def time_attention(
    benchmark: Any, isa: str, variant: Variant, threads: int, record_rates: Callable[..., None]
) -> Callable[[Workload], None]:
    def run(workload: Workload) -> None:
        inputs, reference = drawn(workload, variant)
        call = prepare(workload, inputs, variant)
        error = reference.error(call())
        assert error <= variant.tolerance  # a benchmark must not time a wrong answer
        benchmark.group = f"{workload.name} ({workload.shape})"  # what computes it stands in one table
        benchmark.extra_info["relative_error"] = error
        benchmark(call)
        record_rates(gflop=workload.flops / 1e9, gb=workload.kv_bytes(variant.dtype) / 1e9)

    return run
