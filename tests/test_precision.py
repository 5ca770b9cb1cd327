"""How float32 is multiplied: `precision`, on instruction sets with a matrix unit and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import maskattn
import oracle
from maskattn.masks import Causal
from strategies import normal

LEVELS = ("highest", "high", "medium")
#: Relative error (norm) of each level where a matrix unit multiplies, on normal inputs.
MOST = {"highest": 4e-7, "high": 1e-5, "medium": 4e-3}


@pytest.fixture(autouse=True)
def _precision_as_before() -> Iterator[None]:
    before = maskattn.get_precision()
    yield
    maskattn.set_precision(before)


def relative_error(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


@pytest.mark.parametrize("size", [1, 8], ids=["logits x1", "logits x8"])
def test_errors_of_each_level(isa: str, size: int, rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, 1, 2, 700, 64) for _ in range(3))
    q = q * np.float32(size)
    want, _, _ = oracle.attention(q, k, v, oracle.visible(Causal(), 700, 700, batch=1, heads=2))
    errors = [relative_error(maskattn.attention(q, k, v, mask=Causal(), precision=p), want) for p in LEVELS]  # type: ignore[arg-type]
    for level, error in zip(LEVELS, errors, strict=True):
        assert error <= MOST[level] * (1 if size == 1 else 4), level
    if isa == "amx":
        assert errors[0] * 5 < errors[1]
        assert errors[1] * 5 < errors[2]
    elif isa == "avx512_bf16":
        assert errors[0] == errors[1]
        assert errors[1] * 100 < errors[2]
    else:
        assert errors[0] == errors[1] == errors[2]


@pytest.mark.parametrize("level", LEVELS)
def test_a_decoded_row_has_the_bits_of_the_prefill(isa: str, level: Any, rng: np.random.Generator) -> None:
    q, k, v = normal(rng, 2, 4, 300, 40), normal(rng, 2, 2, 300, 40), normal(rng, 2, 2, 300, 33)
    whole, lse = maskattn.attention(q, k, v, mask=Causal(), precision=level, return_lse=True, threads=2)
    for row in (0, 17, 255, 256, 299):
        one, one_lse = maskattn.attention(
            q[:, :, row : row + 1], k[:, :, : row + 1], v[:, :, : row + 1], precision=level, return_lse=True
        )
        np.testing.assert_array_equal(one, whole[:, :, row : row + 1])
        np.testing.assert_array_equal(one_lse, lse[:, :, row : row + 1])


def test_bfloat16_is_multiplied_as_it_is(isa: str, rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, 1, 2, 70, 64, dtype=ml_dtypes.bfloat16) for _ in range(3))
    results = [maskattn.attention(q, k, v, precision=level) for level in LEVELS]  # type: ignore[call-overload]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_default_is_highest_and_can_be_set(isa: str, rng: np.random.Generator) -> None:
    assert maskattn.get_precision() == maskattn.info()["precision"] == "highest"
    q, k, v = (normal(rng, 1, 2, 70, 64) for _ in range(3))
    cu = [0, 30, 70]
    flat = [np.ascontiguousarray(a[0].transpose(1, 0, 2)) for a in (q, k, v)]
    for level in LEVELS:
        maskattn.set_precision("highest")
        asked = maskattn.attention(q, k, v, mask=Causal(), precision=level)  # type: ignore[call-overload]
        packed = maskattn.attention_varlen(*flat, cu, cu, precision=level)  # type: ignore[call-overload]
        prepared = maskattn.prepare(q, k, v, precision=level)(q, k, v)  # type: ignore[call-overload]
        maskattn.set_precision(level)  # type: ignore[arg-type]
        assert maskattn.get_precision() == level
        np.testing.assert_array_equal(maskattn.attention(q, k, v, mask=Causal()), asked)
        np.testing.assert_array_equal(maskattn.attention(q, k, v), prepared)
        np.testing.assert_array_equal(maskattn.attention_varlen(*flat, cu, cu), packed)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("best", ValueError, "^precision must be one of highest, high, medium, got 'best'"),
        (None, TypeError, "^precision must be one of highest, high, medium, got NoneType"),
    ],
)
def test_other_words_are_refused(bad: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        maskattn.set_precision(bad)
    assert maskattn.get_precision() == "highest"
