"""What the benchmarks share: every instruction set and thread count, and a check before every timing.

``pytest bench`` runs them all; ``-k "decode and avx512"`` picks; ``--benchmark-max-time=0.2`` is a quick look;
``--benchmark-json=FILE`` keeps GFLOP/s and GB/s; ``--benchmark-disable`` only checks the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import maskattn
from workloads import Workload, check, draw, prepare

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
    benchmark: Any, isa: str, threads: int, record_rates: Callable[..., None]
) -> Callable[[Workload], None]:
    def run(workload: Workload) -> None:
        inputs = draw(workload)
        call = prepare(workload, inputs)
        check(workload, inputs, call())  # a benchmark must not time a wrong answer
        benchmark.group = f"{workload.name} ({workload.shape})"  # instruction sets and threads stand in one table
        benchmark(call)
        record_rates(gflop=workload.flops / 1e9, gb=workload.kv_bytes / 1e9)

    return run
