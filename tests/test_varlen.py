"""Packed sequences: the bits of each sequence alone, and padding deleted equals padding masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn.masks import Causal, Full, Mask, SlidingWindow
from strategies import Array, normal

Q_LENGTHS = [5, 0, 1, 300, 17]
KV_LENGTHS = [9, 4, 257, 300, 0]


def ends(lengths: list[int]) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)])


def packed(rng: np.random.Generator, dtype: Any = np.float32) -> tuple[Array, Array, Array]:
    tokens, keys = sum(Q_LENGTHS), sum(KV_LENGTHS)
    return (normal(rng, tokens, 4, 24, dtype=dtype), normal(rng, keys, 2, 24, dtype=dtype),
            normal(rng, keys, 2, 20, dtype=dtype))  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mask", [None, Causal(), Causal() & SlidingWindow(30)], ids=repr)
@pytest.mark.parametrize("threads", [1, 2])
def test_each_sequence_is_as_if_alone(isa: str, mask: Mask, threads: int, dtype: Any, rng: np.random.Generator) -> None:
    q, k, v = packed(rng, dtype)
    cu_q, cu_kv = ends(Q_LENGTHS), ends(KV_LENGTHS)
    out, lse = maskattn.attention_varlen(q, k, v, cu_q, cu_kv, mask=mask, return_lse=True, threads=threads)
    assert out.shape == (len(q), 4, 20)
    assert lse.shape == (len(q), 4)
    for i in range(len(Q_LENGTHS)):
        rows, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_kv[i], cu_kv[i + 1])
        alone = (x.transpose(1, 0, 2)[None] for x in (q[rows], k[keys], v[keys]))
        want, want_lse = maskattn.attention(*alone, mask=mask, return_lse=True)
        np.testing.assert_array_equal(out[rows], want[0].transpose(1, 0, 2))
        np.testing.assert_array_equal(lse[rows], want_lse[0].T)


def test_keys_of_other_sequences_are_not_read(rng: np.random.Generator) -> None:
    q, k, v = packed(rng)
    cu_q, cu_kv = ends(Q_LENGTHS), ends(KV_LENGTHS)
    want = maskattn.attention_varlen(q, k, v, cu_q, cu_kv)
    k[cu_kv[3] : cu_kv[4]], v[cu_kv[3] : cu_kv[4]] = np.nan, np.inf
    got = maskattn.attention_varlen(q, k, v, cu_q, cu_kv)
    np.testing.assert_array_equal(got[: cu_q[3]], want[: cu_q[3]])
    np.testing.assert_array_equal(got[cu_q[4] :], want[cu_q[4] :])


@pytest.mark.parametrize("mask", [None, Causal()], ids=repr)
def test_deleting_equals_masking(isa: str, mask: Mask, rng: np.random.Generator) -> None:
    lengths = np.array([7, 300, 1, 0, 64])
    x = normal(rng, 5, 300, 2, 16)
    keep = np.arange(300) < lengths[:, None]
    tokens, cu = maskattn.unpad(x, keep)
    assert cu.tolist() == [0, 7, 307, 308, 308, 372]
    deleted = maskattn.repad(maskattn.attention_varlen(tokens, tokens, tokens, cu, cu, mask=mask), keep)
    heads_first = x.transpose(0, 2, 1, 3)
    masked = maskattn.attention(heads_first, heads_first, heads_first, mask=mask, kv_lengths=lengths, q_offset=0)
    np.testing.assert_array_equal(deleted, np.where(keep[..., None, None], masked.transpose(0, 2, 1, 3), 0))


def test_out_offset_and_plans(rng: np.random.Generator) -> None:
    q, k, v = packed(rng)
    cu_q, cu_kv = ends(Q_LENGTHS), ends(KV_LENGTHS)
    want = maskattn.attention_varlen(q, k, v, cu_q, cu_kv, mask=Causal(), q_offset=0)
    out = np.full_like(want, np.nan)
    plan = Causal().plan(300, 300, batch=5, heads=4, q_offset=0, kv_lengths=KV_LENGTHS)
    assert maskattn.attention_varlen(q, k, v, cu_q, cu_kv, mask=plan, out=out) is out
    np.testing.assert_array_equal(out, want)
    none = maskattn.attention_varlen(q[:0], k[:0], v[:0], [0], [0], mask=Full())
    assert none.shape == (0, 4, 20)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"q": np.ones((1, 2, 3, 4), np.float32)}, ValueError, r"^q must have shape \(tokens, heads, dim\)"),
        ({"k": [[[1.0]]]}, TypeError, "^k must be a NumPy array, got list"),
        ({"cu_q": [0, 5]}, ValueError, "^cu_kv must have as many sequences as cu_q, 1, got 2"),
        ({"cu_q": [0, 3, 6]}, ValueError, "^cu_q must start at 0, not decrease and end at .* 5, got"),
        ({"cu_kv": [0, 8, 7]}, ValueError, "^cu_kv must start at 0"),
        ({"cu_kv": [0.0, 3.0, 7.0]}, TypeError, "^cu_kv must be integers, got float64"),
        ({"mask": np.ones((3, 4), bool)}, TypeError, "^mask must be a Mask, a MaskPlan or None, got ndarray"),
        ({"mask": Causal().plan(3, 3)}, ValueError, "^mask must be planned for"),
        ({"out": np.ones((5, 2, 3), np.float32)}, ValueError, "^out must have shape"),
        ({"out": np.ones((5, 2), np.float32)}, ValueError, "^out must be an array"),
        ({"v": np.ones((6, 2, 4), np.float32)}, ValueError, "^v must have k's kv_len 7, got 6"),
    ],
)
def test_bad_arguments(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {name: np.ones((n, 2, 4), np.float32) for name, n in (("q", 5), ("k", 7), ("v", 7))}
    with pytest.raises(error, match=message):
        maskattn.attention_varlen(**{**good, "cu_q": [0, 2, 5], "cu_kv": [0, 3, 7], **bad})


def test_bad_padding() -> None:
    x, keep = np.ones((2, 3)), np.ones((2, 3), bool)
    with pytest.raises(TypeError, match=r"^keep must be a bool array .*got int64"):
        maskattn.unpad(x, keep.astype(int))
    with pytest.raises(ValueError, match=r"^keep must have shape \(batch, length\) = \(2, 3\), got \(2, 2\)"):
        maskattn.unpad(x, keep[:, :2])
    with pytest.raises(ValueError, match=r"^keep must mark as many tokens as there are, 5, got 6"):
        maskattn.repad(np.ones(5), keep)
