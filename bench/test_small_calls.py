"""The smallest call: what checking, dispatch and lowering a mask cost before any arithmetic."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn.masks import Causal
from workloads import SMALL, FloatArray, check, draw, prepare


@pytest.mark.parametrize("how", ["prepared", "out", "new array", "plan", "mask"])
def test_small_call(benchmark: Any, isa: str, threads: int, how: str) -> None:
    inputs = draw(SMALL)
    attention = partial(maskattn.attention, inputs.q, inputs.k, inputs.v)
    prepared = maskattn.prepare(inputs.q, inputs.k, inputs.v)
    calls: dict[str, Callable[[], FloatArray]] = {
        "prepared": partial(prepared, inputs.q, inputs.k, inputs.v, out=np.empty_like(inputs.q)),
        "out": prepare(SMALL, inputs),
        "new array": attention,
        "plan": partial(attention, mask=Causal().plan(SMALL.q_len, SMALL.kv_len)),
        "mask": partial(attention, mask=Causal()),  # lowered in every call
    }
    call = calls[how]
    check(SMALL, inputs, call())  # a decoding row sees every key under Causal too
    benchmark.group = f"{SMALL.name} ({SMALL.shape})"
    benchmark(call)
