"""Arrays of other libraries as arguments: without a copy in, and in the caller's kind out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import maskattn
from maskattn import KVCache, masks
from maskattn._core import Exporter
from maskattn.masks import Causal
from strategies import normal


class Foreign:
    """An array of a library that speaks DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return Exporter(self.array).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return (1, 0)


class Namespace:
    """What ``__array_namespace__`` gives: how to make this library's kind of array."""

    @staticmethod
    def from_dlpack(lender: Any) -> Standard:
        return Standard(np.from_dlpack(lender))


class Standard(Foreign):
    """The same library, and the Python array API standard."""

    def __array_namespace__(self) -> type[Namespace]:
        return Namespace


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_foreign_arrays_are_arguments(dtype: Any, rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, 1, heads, 9, 8, dtype=dtype) for heads in (4, 2, 2))
    bias, sinks, keep = normal(rng, 9, 9, dtype=dtype), normal(rng, 4, dtype=dtype), rng.random((9, 9)) < 0.7
    options: dict[str, Any] = {"bias": bias, "sinks": sinks, "mask": keep}
    lent = {name: Foreign(array) for name, array in options.items()}
    want = maskattn.attention(q, k, v, **options)
    np.testing.assert_array_equal(maskattn.attention(Foreign(q), Foreign(k), Foreign(v), **lent), want)
    np.testing.assert_array_equal(maskattn.attention(q, Foreign(k), v, **lent), want)
    for function in (maskattn.attention_weights, maskattn.attention_key_sums):
        np.testing.assert_array_equal(function(Foreign(q), Foreign(k), **lent), function(q, k, **options))


def test_out_may_be_foreign_and_is_returned(rng: np.random.Generator) -> None:
    q = normal(rng, 1, 2, 5, 8)
    out = Foreign(np.zeros((1, 2, 5, 8), np.float32))
    result, lse = maskattn.attention(q, q, q, out=out, return_lse=True)
    assert result is out
    assert lse.shape == (1, 2, 5)
    np.testing.assert_array_equal(out.array, maskattn.attention(q, q, q))
    with pytest.raises(ValueError, match=r"^out must not share memory with q"):
        maskattn.attention(q, q, q, out=Foreign(q))


def test_like_asks_for_the_kind(rng: np.random.Generator) -> None:
    q = normal(rng, 1, 2, 5, 8)
    want, want_lse = maskattn.attention(q, q, q, return_lse=True)
    out, lse = maskattn.attention(q, q, q, return_lse=True, like=Standard(q))
    assert type(out) is type(lse) is Standard
    np.testing.assert_array_equal(out.array, want)
    np.testing.assert_array_equal(lse.array, want_lse)
    assert isinstance(maskattn.attention(Foreign(q), Foreign(q), Foreign(q), like="numpy"), np.ndarray)
    with pytest.raises(TypeError, match=r"^like must be"):
        maskattn.attention(q, q, q, like=3)


def test_packed_sequences_may_be_foreign(rng: np.random.Generator) -> None:
    x, ends = normal(rng, 9, 2, 8), [0, 4, 9]
    want = maskattn.attention_varlen(x, x, x, ends, ends, mask=Causal())
    got = maskattn.attention_varlen(Foreign(x), Foreign(x), Foreign(x), ends, ends, mask=Causal(), like=Standard(x))
    np.testing.assert_array_equal(got.array, want)
    out = Foreign(np.zeros_like(x))
    assert maskattn.attention_varlen(x, x, x, ends, ends, mask=Causal(), out=out) is out
    np.testing.assert_array_equal(out.array, want)


def test_queries_of_a_cache_may_be_foreign(rng: np.random.Generator) -> None:
    cache, q = KVCache(1, 1, 2, 64, 8), normal(rng, 1, 2, 1, 8)
    cache[0].append(normal(rng, 1, 2, 9, 8), normal(rng, 1, 2, 9, 8))
    np.testing.assert_array_equal(maskattn.attention(Foreign(q), cache[0]), maskattn.attention(q, cache[0]))


def test_read_only_arrays_are_inputs(rng: np.random.Generator) -> None:
    q = normal(rng, 1, 2, 5, 8)
    want = maskattn.attention(q, q, q, bias=q[0, 0, :, :5].copy(), mask=masks.Full())
    q.flags.writeable = False
    np.testing.assert_array_equal(maskattn.attention(q, q, q, bias=q[0, 0, :, :5], mask=masks.Full()), want)
