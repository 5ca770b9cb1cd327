"""linear(): right, the same for a row whatever else is in the call, and clear about bad shapes."""

from __future__ import annotations

import numpy as np
import pytest

import maskattn
from maskattn.linear import linear


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 193])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 65), (96, 288), (512, 63)])
def test_matches_float64(isa: str, rows: int, inputs: int, outputs: int, rng: np.random.Generator) -> None:
    x, w, b = (rng.standard_normal(s, dtype=np.float32) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    want = x.astype(np.float64) @ w.T.astype(np.float64)
    tolerance = 3e-6 * np.sqrt(inputs) + 1e-6
    np.testing.assert_allclose(linear(x, w), want, rtol=0, atol=tolerance)
    np.testing.assert_allclose(linear(x, w, b), want + b, rtol=0, atol=tolerance)


def test_a_row_does_not_depend_on_the_others(isa: str, rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((300, 77), dtype=np.float32), rng.standard_normal((130, 77), dtype=np.float32)
    whole = linear(x, w)
    for first, last in [(0, 1), (5, 6), (299, 300), (10, 17), (100, 299)]:
        np.testing.assert_array_equal(linear(x[first:last], w), whole[first:last])
    np.testing.assert_array_equal(linear(x.reshape(3, 100, 77), w), whole.reshape(3, 100, 130))
    threads = maskattn.num_threads()
    try:
        maskattn.set_num_threads(1)
        np.testing.assert_array_equal(linear(x, w), whole)
    finally:
        maskattn.set_num_threads(threads)


def test_views_come_in_as_they_are(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((9, 20), dtype=np.float32), rng.standard_normal((12, 40), dtype=np.float32)
    np.testing.assert_array_equal(linear(x[::2], w[1::3, 5:25]), linear(x[::2].copy(), w[1::3, 5:25].copy()))


def test_bad_shapes(rng: np.random.Generator) -> None:
    x, w = rng.standard_normal((9, 20), dtype=np.float32), rng.standard_normal((12, 20), dtype=np.float32)
    with pytest.raises(ValueError, match=r"weight must have shape .* got weight \(20, 12\)"):
        linear(x, w.T)
    with pytest.raises(ValueError, match=r"bias must have shape \(12,\), got \(20,\)"):
        linear(x, w, x[0])
    with pytest.raises(TypeError):
        linear(x.astype(np.float64), w)  # type: ignore[arg-type]
