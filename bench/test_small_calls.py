"""The smallest call: what checking, dispatch and lowering a mask cost before any arithmetic."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import maskattn
from bench.variants import Variant
from bench.workloads import SMALL, FloatArray, check, draw, prepare
from maskattn.masks import Causal


@pytest.mark.parametrize("how", ["prepared", "out", "new array", "plan", "mask"])
def test_small_call(benchmark: Any, isa: str, variant: Variant, threads: int, how: str) -> None:
    inputs = draw(SMALL, variant.dtype)
    arrays = (inputs.q, inputs.k, inputs.v)
    attention = partial(maskattn.attention, *arrays, precision=variant.precision)
    prepared = maskattn.prepare(*arrays, precision=variant.precision)
    calls: dict[str, Callable[[], FloatArray]] = {
        "prepared": partial(prepared, *arrays, out=np.empty_like(inputs.q)),
        "out": prepare(SMALL, inputs, variant),
        "new array": attention,
        "plan": partial(attention, mask=Causal().plan(SMALL.q_len, SMALL.kv_len)),
        "mask": partial(attention, mask=Causal()),  # lowered in every call
    }
    call = calls[how]
    check(SMALL, inputs, call(), variant)  # a decoding row sees every key under Causal too
    benchmark.group = f"{SMALL.name} ({SMALL.shape})"
    benchmark(call)
