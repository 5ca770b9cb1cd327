"""Ratios of maskattn to PyTorch's scaled_dot_product_attention in float32, measured side by side in one process.

    pip install ".[parity]" && python bench/ratios.py --markdown

How it is timed: side_by_side.py. Of PyTorch's ways to compute a case (torch_ways.py) the fastest counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

try:
    import side_by_side as timing  # PyTorch first
except ModuleNotFoundError:
    raise SystemExit('ratios.py compares with PyTorch, which is not installed: pip install ".[parity]"') from None

import maskattn
import torch_ways as ways
import workloads
from side_by_side import Cases, Prepared
from workloads import TOLERANCE, Workload

MASK_SIZE = 8192


def attention_case(workload: Workload, make_ways: Callable[[Workload, ways.Tensors], ways.Ways]) -> Prepared:
    inputs = workloads.draw(workload)
    memory_bound = workload.q_len == 1
    return Prepared(
        workloads.prepare(workload, inputs),
        make_ways(workload, ways.Tensors.of(inputs)),
        (workload.kv_bytes if memory_bound else workload.flops) / 1e9,
        "GB/s" if memory_bound else "GFLOP/s",
    )


def prepared_case(workload: Workload) -> Prepared:
    """Both sides prepared: PyTorch's tensors are made beforehand, and nothing is lent to or by NumPy."""
    inputs = workloads.draw(workload)
    call = maskattn.prepare(inputs.q, inputs.k, inputs.v)
    ours = partial(call, inputs.q, inputs.k, inputs.v, out=np.empty_like(inputs.q))
    return Prepared(ours, ways.plain(workload, ways.Tensors.of(inputs)), workload.kv_bytes / 1e9, "GB/s")


def from_and_to_numpy_case(workload: Workload) -> Prepared:
    """What a program pays that has NumPy arrays and wants one."""
    inputs = workloads.draw(workload)
    theirs = {"SDPA": partial(ways.from_and_to_numpy, inputs)}
    return Prepared(workloads.prepare(workload, inputs), theirs, workload.kv_bytes / 1e9, "GB/s")


def bias_case(workload: Workload, by_distance: bool) -> Prepared:
    """T5's bias of all sequences, as the models' tables have it or materialised; PyTorch takes it as a matrix only."""
    inputs = workloads.draw(workload)
    table = np.random.default_rng(0).standard_normal((32, workload.q_heads))
    relative = maskattn.RelativeBias(table)
    positions = np.arange(workload.q_len)
    matrix = relative.values(positions[:, None], positions).astype(np.float32)[None]
    call = partial(maskattn.attention, inputs.q, inputs.k, inputs.v, out=np.empty_like(inputs.q))
    ours = partial(call, bias=relative if by_distance else matrix)
    return Prepared(ours, ways.biased(ways.Tensors.of(inputs), matrix), workload.flops / 1e9, "GFLOP/s")


def mask_case(n: int) -> Prepared:
    """Lowering and filling; PyTorch writes into old memory if that is its faster way, so ours does too."""
    out = np.empty((1, 1, n, n), np.float32)
    fill = partial(maskattn.masks.Causal().to_additive, n, n, out=out)
    return Prepared(fill, ways.additive_causal(n), out.nbytes / 1e9, "GB/s")


def cases() -> Cases:
    pairs = [
        *((w, ways.causal) for w in (workloads.CAUSAL_512, workloads.CAUSAL_2048, workloads.CAUSAL_8192)),
        (workloads.CAUSAL_GQA, ways.causal),
        (workloads.CROSS, ways.padded),
        (workloads.ENCODER, ways.padded),
        (workloads.SLIDING_WINDOW, ways.window),
        (workloads.PACKED, ways.documents),
        (workloads.PREFIX_LM, ways.prefix_lm),
        *((w, ways.plain) for w in (*workloads.DECODE, workloads.SMALL)),
    ]
    attention = {workload.name: partial(attention_case, workload, how) for workload, how in pairs}
    small, biased = workloads.SMALL, workloads.BIASED
    attention |= {
        f"{small.name}, prepared": partial(prepared_case, small),
        f"{small.name}, from and to NumPy": partial(from_and_to_numpy_case, small),
        f"{biased.name}, by distance": partial(bias_case, biased, True),
        f"{biased.name}, an array": partial(bias_case, biased, False),
    }
    return {**attention, f"causal mask to float {MASK_SIZE} x {MASK_SIZE}": partial(mask_case, MASK_SIZE)}


def check(case: str, prepared: Prepared) -> None:
    ours = prepared.ours()
    for name, way in prepared.theirs.items():
        theirs = way().numpy().reshape(ours.shape)
        with np.errstate(invalid="ignore"):  # inf - inf, where both masks hide: NaN, but equal
            right = (ours == theirs) | (np.abs(ours - theirs) <= TOLERANCE)
        if not right.all():
            raise SystemExit(f"{case}: maskattn and PyTorch ({name}) differ by more than {TOLERANCE}")


if __name__ == "__main__":
    timing.main(__doc__ or "", cases(), check, "float32, ")
