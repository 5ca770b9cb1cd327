"""What memory holds, per instruction set: dtypes of arrays, storages of a cache. And storage_ratios.py in small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import maskattn
from maskattn import KVCache

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8]
STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "pages of 16": {"page_size": 16},
    "pages of 64": {"page_size": 64},
    "ring": {"window": 4096},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("storage", STORAGES)
def test_decode_over_a_cache(
    benchmark: Any, isa: str, threads: int, record_rates: Callable[..., None], storage: str, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 8, n, 64), dtype=np.float32) for n in (1, 4096, 4096))
    cache = KVCache(1, 1, 8, 4096, 64, dtype=dtype, **STORAGES[storage])
    cache[0].append(k, v)
    want = maskattn.attention(q, *cache[0].arrays())
    np.testing.assert_array_equal(maskattn.attention(q, cache[0]), want)
    benchmark.group = "decode, 4096 keys of a cache, 8 x 64"
    benchmark(maskattn.attention, q, cache[0])
    scales = 4 if dtype == np.int8 else 0
    record_rates(gb=2 * 8 * 4096 * (64 * np.dtype(dtype).itemsize + scales) / 1e9)


@pytest.mark.usefixtures("hasty")
def test_ratios_in_small() -> None:
    pytest.importorskip("torch")
    from bench import side_by_side, storage_ratios

    for name, prepare in storage_ratios.cases(prefill=64, decode=256).items():
        [result] = side_by_side.run({name: prepare}, storage_ratios.check, side_by_side.row, threads=1, rounds=1)
        assert len(side_by_side.row(result)) == len(side_by_side.HEAD)
