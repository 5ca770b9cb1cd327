"""The largest sizes, tested by arithmetic where memory does not reach, and the smallest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import maskattn
import oracle
from maskattn import KVCache, masks
from maskattn.masks import Causal, Mask
from strategies import normal

MOST = 2**31 - 1  # keys
LAST = MOST - 1  # the last of them


@pytest.mark.parametrize(
    ("mask", "spans"),
    [
        (masks.Full(), [(0, MOST)]),
        (Causal(), [(0, MOST)]),
        (~Causal(), []),
        (Causal() & masks.SlidingWindow(left=9), [(MOST - 10, MOST)]),
        (~masks.Padding(5), [(5, MOST)]),
        (masks.Padding(3, side="left"), [(MOST - 3, MOST)]),
        (masks.FirstTokens(4) | masks.SlidingWindow(3, 3), [(0, 4), (MOST - 4, MOST)]),
        (masks.Chunked(7), [(LAST - LAST % 7, MOST)]),
        (
            masks.Dilated(2, 10**9),
            [(LAST - 2 * 10**9, LAST - 2 * 10**9 + 1), (LAST - 10**9, LAST - 10**9 + 1), (LAST, MOST)],
        ),
        (masks.GlobalTokens([0, MOST]), [(0, 1)]),
        (masks.GlobalTokens([LAST]), [(0, MOST)]),
        (masks.Tree([-1, 0, 0]), [(0, MOST - 2), (LAST, MOST)]),
        (masks.PrefixLM(MOST), [(0, MOST)]),
        (masks.BlockDiffusion(64, 2**30), [(2**30, MOST)]),
        (~masks.SlidingWindow(1, 1), [(0, MOST - 2)]),
    ],
    ids=repr,
)
def test_the_last_row_of_as_many_keys_as_there_can_be(mask: Mask, spans: list[tuple[int, int]]) -> None:
    plan = mask.plan(1, MOST)
    assert plan.spans(0, 0, 0) == (spans, False)
    assert plan.count() == sum(end - begin for begin, end in spans)
    assert plan.empty_rows().tolist() == [[[not spans]]]


def test_one_key_more_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"kv_len must be below 2\*\*31, got 2147483648"):
        Causal().plan(1, MOST + 1)
    plan = Causal().plan(1, LAST)
    assert plan.extend(1).kv_len == MOST
    with pytest.raises(ValueError, match=r"kv_len must be below 2\*\*31, got 2147483648"):
        plan.extend(1)
    assert (plan.q_len, plan.kv_len) == (2, MOST)
    keys: Any = np.broadcast_to(np.float32(1), (1, 1, MOST + 1, 1))
    with pytest.raises(ValueError, match=r"^k must have fewer than 2\*\*31 keys, got 2147483648"):
        maskattn.attention(np.ones((1, 1, 1, 1), np.float32), keys, keys)


def test_counts_beyond_32_bits() -> None:
    assert Causal().count(10, MOST, batch=3, heads=7) == 21 * sum(MOST - i for i in range(10))
    assert masks.Full().flops(2, MOST, head_dim=128, batch=2) == 4 * 128 * 2 * 2 * MOST


def test_a_few_keys_of_very_many(isa: str) -> None:
    """A window at the end of an array that repeats one key: only what is seen costs anything."""
    k = np.broadcast_to(np.ones((1, 1, 1, 8), np.float32), (1, 1, MOST, 8))
    q = np.ones((1, 1, 1, 8), np.float32)
    out, lse = maskattn.attention(q, k, k, mask=masks.SlidingWindow(left=99), return_lse=True)
    np.testing.assert_allclose(out, 1, rtol=1e-6)
    np.testing.assert_allclose(lse, 8 / 8**0.5 + np.log(100), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@pytest.mark.parametrize("head_dim", [511, 512, 1000, 1024])
def test_wide_heads(isa: str, dtype: Any, head_dim: int, rng: np.random.Generator) -> None:
    q, k, v = (normal(rng, 1, heads, n, head_dim, dtype=dtype) for heads, n in ((4, 9), (2, 70), (2, 70)))
    want, want_lse, _ = oracle.attention(q, k, v, oracle.visible(Causal(), 9, 70, heads=4))
    got, lse = maskattn.attention(q, k, v, mask=Causal(), return_lse=True)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2**-10 if dtype == np.float16 else 0, atol=5e-6)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=5e-6)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_nothing_of_everything(batch: int, q_len: int, kv_len: int, dtype: Any) -> None:
    q, k, v = (np.ones((batch, 2, n, 4), dtype) for n in (q_len, kv_len, kv_len))
    options: dict[str, Any] = {"mask": Causal(), "softcap": 3, "sinks": [0, 1], "bias": maskattn.ALiBi([1, 2])}
    out, lse = maskattn.attention(q, k, v, return_lse=True, **options)
    assert out.shape == q.shape
    assert not out.any()
    assert np.isneginf(lse).all()
    assert maskattn.attention_weights(q, k, **options).shape == (batch, 2, q_len, kv_len)
    assert maskattn.attention_key_sums(q, k, **options).shape == (batch, 2, kv_len)


def test_an_empty_cache() -> None:
    for batch in (0, 2):
        cache = KVCache(1, batch, 2, 64, 4)
        out, lse = maskattn.attention(np.ones((batch, 4, 1, 4), np.float32), cache[0], mask=Causal(), return_lse=True)
        assert not out.any()
        assert np.isneginf(lse).all()
