"""merge_states() on a device against the CPU's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, Lent, back, lent, on_device
from test_cuda_attention import DTYPES

import maskattn
from maskattn import cuda
from maskattn.masks import Causal, Padding
from strategies import normal, qkv


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_parts_are_the_whole(dtype: Any, rng: np.random.Generator) -> None:
    q, k, v = map(lent, qkv(rng, 2, 4, 2, 5, 300, 40, dtype=dtype))
    keys = {"mask": Causal(), "return_lse": True}
    whole = maskattn.attention(q, k, v, **keys, sinks=np.ones(4))
    for border in (0, 7, 128, 300):
        parts = [
            maskattn.attention(q, k, v, **keys | {"mask": Causal() & mine}, sinks=sinks)
            for mine, sinks in ((Padding(border), None), (~Padding(border), np.ones(4)))
        ]
        if border == 300:  # the part with the sinks says nothing of them where it sees no key
            parts[0] = maskattn.attention(q, k, v, **keys, sinks=np.ones(4))
        merged = maskattn.merge_states(*parts[0], *parts[1])
        epsilon = float(ml_dtypes.finfo(dtype).eps)
        for got, want, most in zip(merged, whole, (2 * epsilon + 4e-6, 4e-6), strict=True):
            assert type(got) is Lent
            assert back(got).dtype == back(want).dtype
            np.testing.assert_allclose(back(got).astype(float), back(want).astype(float), rtol=most, atol=most)


def test_empty_parts_are_neutral(rng: np.random.Generator) -> None:
    out, lse = normal(rng, 2, 3, 40), normal(rng, 2, 3)
    nothing = np.full((2, 3, 40), np.nan, np.float32), np.full((2, 3), -np.inf, np.float32)
    for given in ((out, lse, *nothing), (*nothing, out, lse)):
        merged = maskattn.merge_states(*map(lent, given))
        np.testing.assert_array_equal(back(merged[0]), out)
        np.testing.assert_allclose(back(merged[1]), lse, rtol=1e-6)
    both = maskattn.merge_states(*map(lent, nothing * 2))
    assert not back(both[0]).any()
    assert np.isneginf(back(both[1])).all()


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 70), (2, 1, 3, 2, 1, 2, 2, 3), (0, 3, 4), (3, 0)], ids=str)
def test_the_numbers_of_the_cpu(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    extremes = np.array([0.0, -np.inf, np.inf, np.nan, 3e38, -3e38, 88.0, -104.0], np.float32)
    a, b = ((normal(rng, *shape), np.asarray(30 * normal(rng, *shape[:-1]))) for _ in range(2))
    for lse in (a[1], b[1]):
        chosen = np.asarray(rng.random(lse.shape) < 0.3)
        lse[chosen] = rng.choice(extremes, int(chosen.sum()))
    with np.errstate(all="ignore"):
        want = maskattn.merge_states(*a, *b)
    for got, each in zip(maskattn.merge_states(*map(lent, (*a, *b))), want, strict=True):
        np.testing.assert_allclose(back(got), each, rtol=2e-6, atol=1e-6)


def test_kinds_dtypes_and_strides(rng: np.random.Generator) -> None:
    a, b = ((normal(rng, 5, 3, 70).swapaxes(0, 1), normal(rng, 5, 3).T) for _ in range(2))
    want = maskattn.merge_states(*a, *b)
    given = (np.array(a[0], ml_dtypes.bfloat16, order="C"), *(each.astype(np.float16) for each in (a[1], b[0])), b[1])
    merged = maskattn.merge_states(on_device(given[0]), Interface(on_device(given[1])), *map(on_device, given[2:]))
    assert all(isinstance(each, cuda.Array) for each in merged)
    assert [each.dtype for each in merged] == ["bfloat16", "float16"]
    for got, each in zip(merged, want, strict=True):
        np.testing.assert_allclose(back(got).astype(np.float32), each, rtol=1e-2, atol=1e-2)


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lse_a": np.zeros((5, 1), np.float32)}, ValueError, r"^lse_a must have shape \(5,\).*got \(5, 1\)"),
    ({"out_b": np.zeros((5, 3), np.float32)}, ValueError, r"^out_b must have shape \(5, 4\).*got \(5, 3\)"),
    ({"lse_b": np.zeros(5)}, TypeError, "^lse_b must be float32, float16 or bfloat16 on CUDA, got float64"),
    ({"out_a": np.zeros((1,) * 9, np.float32)}, ValueError, "^out_a must have from 1 to 8 axes on CUDA"),
]


@pytest.mark.parametrize(("bad", "error", "message"), ERRORS, ids=[case[2] for case in ERRORS])
def test_states_that_do_not_belong_together(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    out, lse = np.zeros((5, 4), np.float32), np.zeros(5, np.float32)
    given = {"out_a": out, "lse_a": lse, "out_b": out, "lse_b": lse}
    with pytest.raises(error, match=message):
        maskattn.merge_states(**{name: lent(each) for name, each in (given | bad).items()})


@pytest.mark.parametrize("name", ["out_a", "lse_b"])
def test_arrays_of_the_host_among_them(name: str) -> None:
    out, lse = np.zeros((5, 4), np.float32), np.zeros(5, np.float32)
    given = {"out_a": lent(out), "lse_a": lent(lse), "out_b": lent(out), "lse_b": lent(lse)}
    given[name] = out if name == "out_a" else lse
    with pytest.raises(TypeError, match=f"^{name} must be a CUDA array, as .* is, got ndarray"):
        maskattn.merge_states(**given)
