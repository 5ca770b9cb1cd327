"""What the machine can do at most, measured in the same rounds as what is compared with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.side_by_side import Call, Result
from bench.variants import Variant
from bench.workloads import Workload
from maskattn import _core

FMA_ROUNDS = 100_000  # about a millisecond on a vector unit of two multiply-adds a cycle
MATRIX_SIZE = 768  # two matrices of bfloat16 stay in the second-level cache
READ_BYTES = 128 << 20  # more than any cache of a core or of its neighbours


@dataclass(frozen=True)
class Probe:
    """``work``: GFLOP or GB of a call."""

    call: Call
    work: float


def read_probe() -> Probe:
    """The sum of an array that no cache holds."""
    numbers = torch.ones(READ_BYTES // 4)
    return Probe(numbers.sum, READ_BYTES / 1e9)


def fma_probe(threads: int) -> Probe:
    """Multiply-adds on registers, by the instruction set in use."""
    work = _core.multiply_add(1, threads) * FMA_ROUNDS
    return Probe(lambda: _core.multiply_add(FMA_ROUNDS, threads), work / 1e9)


def matrix_probe() -> Probe:
    """oneDNN's product of bfloat16 matrices: AMX where there is one, else the dot products of AVX-512."""
    a, b = (torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return Probe(lambda: torch.mm(a, b, out=out), 2 * MATRIX_SIZE**3 / 1e9)


def probes(w: Workload, threads: int) -> dict[str, Probe]:
    """What bounds a workload: reading where each key meets few queries, else arithmetic."""
    if w.is_decode:
        return {"read": read_probe()}
    return {"FMA": fma_probe(threads), "matrix": matrix_probe()}


def floor(result: Result, found: dict[str, float], variant: Variant) -> float:
    """Seconds that the best unit needs at its peak; ``found``: the probes' ``work``, by name.

    The best unit for float32 need not be the one of float32: a matrix unit that multiplies bfloat16 fast enough makes a
    product of several. The fastest round of a probe counts, since a peak is what is reached at best.
    """
    rates = {name: found[name] / min(times) for name, times in result.references.items()}
    if "matrix" in rates:
        rates["matrix"] /= variant.products
    return result.work / max(rates.values())
