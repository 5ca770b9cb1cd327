"""attention_weights() on a device against the float64 oracle, and against the CPU's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, Lent, back, lent, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_attention import DTYPES, seen_by

import maskattn
import oracle
from maskattn import ALiBi, RelativeBias, cuda
from maskattn.masks import Causal, Dense, Function, Padding, SlidingWindow
from strategies import Array, Problem, normal, problems, qkv

STAGES = ["scores", "softcap", "bias", "softmax"]


def close(got: Any, want: Array, dtype: Any) -> Array:
    """As float32's arithmetic and the rounding of the dtype allow; hidden ones alike."""
    host = back(got)
    assert host.dtype == dtype
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    with np.errstate(invalid="ignore"):
        wide = host.astype(np.float64)
        np.testing.assert_allclose(wide, want, rtol=epsilon + 1e-6, atol=4e-6 + epsilon * 1e-2)
    return host


@settings(max_examples=25)
@given(problem=problems(), dtype=st.sampled_from(DTYPES), scale=st.sampled_from([None, 1 / 16, -0.1]))
def test_weights_at_every_stage(problem: Problem, dtype: Any, scale: float | None) -> None:
    p, where = problem, problem.where()
    q, k, v = (each.astype(dtype) for each in (p.q, p.k, p.v))
    bias = None if p.bias is None else p.bias.astype(dtype)
    seen, exist = (seen_by(mask, q, k, where) for mask in (p.mask, None))

    def weights(stage: Any) -> Any:
        on_bias = None if bias is None else lent(bias)
        return maskattn.attention_weights(
            lent(q), lent(k), stage=stage, mask=p.mask, bias=on_bias, scale=scale, **where
        )

    scores = np.where(exist, oracle.scores(q, k, scale=scale), -np.inf)
    np.testing.assert_array_equal(back(weights("softcap")), close(weights("scores"), scores, dtype))
    close(weights("bias"), np.where(seen, oracle.scores(q, k, bias=bias, scale=scale), -np.inf), dtype)
    softmax = close(weights("softmax"), oracle.attention(q, k, v, seen, bias=bias, scale=scale)[2], dtype)
    assert not softmax[~seen].any()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_numbers_of_the_cpu(stage: Any, dtype: Any, rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 2, 4, 2, 5, 300, 40, dtype=dtype)
    hidden = normal(rng, 4, 1, 300, dtype=dtype)
    hidden[rng.random(hidden.shape) < 0.3] = -np.inf
    cases: list[dict[str, Any]] = [
        {"mask": Causal() & ~Padding(3), "softcap": 3.0, "kv_lengths": [300, 120], "sinks": rng.standard_normal(4)},
        {"bias": hidden, "rows": [-1, 0, 3, 3], "scale": 0.7},
        {"bias": ALiBi.for_heads(4), "mask": Causal(), "q_offset": [100, 7], "precision": "medium"},
        {"bias": RelativeBias(rng.standard_normal((8, 4)), max_distance=20), "kv_lengths": np.array([70, 300])},
        {"mask": Function(lambda b, h, q, k: (q + h + 2 * k) % 5 < 2, per_sequence=False), "rows": np.array([4])},
        {"mask": Causal() & SlidingWindow(20), "rows": []},
    ]
    for options in cases:
        want = maskattn.attention_weights(q, k, stage=stage, **options | {"precision": None})
        bias = options.get("bias")
        ours = options | {"bias": lent(bias) if isinstance(bias, np.ndarray) else bias}
        got = maskattn.attention_weights(lent(q), lent(k), stage=stage, **ours)
        assert type(got) is Lent
        close(got, want.astype(np.float64), dtype)


def test_a_bias_may_be_as_low_as_floats_go(rng: np.random.Generator) -> None:
    """The "minus infinity" of many masks is no -inf: of a row that sees nothing else, it leaves the mean."""
    q, k, _ = qkv(rng, 1, 1, 1, 2, 8)
    lowest = np.full((2, 8), np.finfo(np.float32).min)
    lowest[0, 3] = 0
    for stage in STAGES:
        want = maskattn.attention_weights(q, k, stage=stage, bias=lowest)
        got = back(maskattn.attention_weights(lent(q), lent(k), stage=stage, bias=lent(lowest)))
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_weights_are_those_of_attention(kernels: None, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 4, 2, 5, 300, 40)
    options: dict[str, Any] = {"mask": Causal(), "sinks": np.ones(4), "kv_lengths": [300, 0]}
    weights = back(maskattn.attention_weights(lent(q), lent(k), **options))
    got = back(maskattn.attention(*map(lent, (q, k, v)), **options))
    np.testing.assert_allclose(weights @ np.repeat(v, 2, axis=1), got, rtol=0, atol=4e-6)
    assert not weights[1].any()


def test_keys_that_are_not_seen_do_not_matter(rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 1, 2, 1, 5, 70)
    want = [back(maskattn.attention_weights(lent(q), lent(k), stage=stage, mask=Padding(30))) for stage in STAGES[2:]]
    k[:, :, 30:] = np.nan
    for stage, each in zip(STAGES[2:], want, strict=True):
        got = back(maskattn.attention_weights(lent(q), lent(k), stage=stage, mask=Padding(30)))
        np.testing.assert_array_equal(got, each)


@pytest.mark.parametrize("batch", [1, 2])
def test_scores_of_a_plan_keep_its_lengths(batch: int, rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 2, 2, 2, 3, 9)
    lengths = [9, 4][-batch:]
    for plan in (
        Causal().plan(3, 9, batch=batch, kv_lengths=lengths),
        cuda.plan(Causal(), 3, 9, batch=batch, kv_lengths=lengths),
    ):
        scores = back(maskattn.attention_weights(lent(q), lent(k), stage="scores", mask=plan))
        for b in range(2):
            length = lengths[b % batch]
            assert np.isneginf(scores[b, :, :, length:]).all()
            assert np.isfinite(scores[b, :, :, :length]).all()
        np.testing.assert_array_equal(
            back(maskattn.attention_weights(lent(q), lent(k), mask=plan)),
            back(maskattn.attention_weights(lent(q), lent(k), mask=Causal(), kv_lengths=(lengths * 2)[:2])),
        )


def test_kinds_of_arrays_and_masks(rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 2, 4, 2, 5, 70)
    keep = rng.random((2, 1, 5, 70)) < 0.5
    want = back(maskattn.attention_weights(lent(q), lent(k), mask=Dense(keep), kv_lengths=[70, 30]))
    lengths = lent(np.array([70, 30], np.int32))
    got = maskattn.attention_weights(Interface(on_device(q)), on_device(k), mask=on_device(keep), kv_lengths=lengths)
    assert isinstance(got, cuda.Array)
    np.testing.assert_array_equal(back(got), want)
    turned = [np.ascontiguousarray(each.swapaxes(1, 2)).swapaxes(1, 2) for each in (q, k)]
    got = maskattn.attention_weights(*map(on_device, turned), mask=keep, kv_lengths=[70, 30])
    np.testing.assert_array_equal(back(got), want)
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        batch, q_len, kv_len = shape
        q, k, _ = qkv(rng, batch, 2, 2, q_len, kv_len)
        assert back(maskattn.attention_weights(lent(q), lent(k))).shape == (batch, 2, q_len, kv_len)


# Errors


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return on_device(np.ones(shape, dtype))


ERRORS: list[tuple[Any, type[Exception], str]] = [
    (lambda: {"q": ones(4, 3, 8)}, ValueError, r"^q must have shape \(batch, .*got .*\(4, 3, 8\)"),
    (lambda: {"q": ones(2, 4, 3, 8, dtype=np.float64)}, TypeError, "^q must be float32, float16 or bfloat16 on CUDA"),
    (lambda: {"k": ones(2, 2, 5, 9)}, ValueError, "^k must have q's head_dim 8, got 9"),
    (lambda: {"k": ones(2, 3, 5, 8)}, ValueError, "^k must have a number of heads that divides q's 4, got 3"),
    (lambda: {"k": np.ones((2, 2, 5, 8), np.float32)}, TypeError, "^k must be a CUDA array, as q is, got ndarray"),
    (lambda: {"stage": "logits"}, ValueError, "^stage must be one of scores, softcap, bias, softmax, got 'logits'"),
    (lambda: {"rows": [3]}, IndexError, "^rows must be from -3 to 2, got 3"),
    (lambda: {"rows": [0.5]}, TypeError, "^rows must be a sequence of integers, got float64"),
    (lambda: {"bias": ones(3, 3, 5)}, ValueError, r"^bias must be broadcastable to .*got .*\(3, 3, 5\)"),
    (lambda: {"sinks": np.ones(3)}, ValueError, "^sinks must have one entry per query head, 4, got 3"),
    (lambda: {"mask": Causal().plan(3, 6)}, ValueError, r"^mask must be planned for .*\(2, 4, 3, 5\)"),
    (lambda: {"kv_lengths": [5, 6]}, ValueError, "^kv_lengths must be from 0 to kv_len = 5, got 6"),
    (lambda: {"precision": "best"}, ValueError, "^precision must be one of"),
]


@pytest.mark.parametrize(("given", "error", "message"), ERRORS, ids=[case[2] for case in ERRORS])
def test_errors(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        maskattn.attention_weights(**({"q": ones(2, 4, 3, 8), "k": ones(2, 2, 5, 8)} | given()))
