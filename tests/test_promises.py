"""The promises of attention(): empty rows, unread keys, one canonical reduction, and no half-done work."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
import oracle
from maskattn.masks import Causal, Dense, Full, KeyPadding, Mask, Padding, PrefixLM, SlidingWindow
from strategies import Array, Problem, normal, problems, qkv, seeds

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def same_bits(a: Array, b: Array) -> None:
    """Not merely equal: -0 is not 0, and NaNs are compared as they are stored."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(unsigned), np.ascontiguousarray(b).view(unsigned))


def attend(q: Array, k: Array, v: Array, **options: Any) -> Array:
    """Output and LSE side by side, so that one comparison sees both."""
    out, lse = maskattn.attention(q, k, v, return_lse=True, **options)
    return np.concatenate([out, lse[..., None]], axis=-1)


# 1. A row that sees no key gives zeros and LSE = -inf. (Warnings are errors here, so there is no warning either.)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"mask": ~Full()},
        {"mask": np.zeros((1, 1), bool)},
        {"kv_lengths": 0},
        {"mask": Padding(0)},
        {"mask": Causal(), "q_offset": -10_000},
        {"bias": -np.inf},
        {"mask": Causal() & ~Causal()},
    ],
    ids=str,
)
def test_rows_that_see_nothing(
    isa: str, dtype: Any, threads: int, options: dict[str, Any], rng: np.random.Generator
) -> None:
    if "bias" in options:
        options = {"bias": np.full((1, 1), -np.inf, dtype)}
    for kv_len in (5, 1000):
        q, k, v = qkv(rng, 2, 2, 1, 7, kv_len, 8, 8, dtype)
        for poison in (None, np.nan):
            if poison is not None:
                k[:], v[:] = poison, poison
            out, lse = maskattn.attention(q, k, v, return_lse=True, threads=threads, **options)
            assert out.tobytes() == bytes(out.nbytes)
            assert np.isneginf(lse).all()
            assert not maskattn.attention_weights(q, k, **options).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_rows_among_others(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 2, 2, 20, 300, 8, 8, dtype)
    out, lse = maskattn.attention(q, k, v, mask=Causal() & ~Padding(290), return_lse=True)  # rows at 280 .. 299
    assert out[:, :, :10].tobytes() == bytes(out[:, :, :10].nbytes)
    assert np.isneginf(lse[:, :, :10]).all()
    assert np.isfinite(lse[:, :, 10:]).all()
    assert out[:, :, 10:].all()


# 2. Masked means unread.


def poisoned(array: Array, unseen: Array, poison: float) -> Array:
    """A copy with `poison` in the keys (batch, kv_heads, kv_len) that are unseen."""
    copy = array.copy()
    copy[unseen] = poison
    return copy


def per_kv_head(seen: Array, kv_heads: int) -> Array:
    """(batch, q_heads, ..., kv_len) -> (batch, kv_heads, ..., kv_len): whether some head of the group sees the key."""
    return seen.reshape(seen.shape[0], kv_heads, seen.shape[1] // kv_heads, *seen.shape[2:]).any(axis=2)


@given(problem=problems(), poison=st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
def test_keys_that_no_query_sees_change_no_bit(isa: str, problem: Problem, poison: float) -> None:
    p = problem
    seen = oracle.visible(p.mask, p.q.shape[2], p.k.shape[2], batch=p.q.shape[0], heads=p.q.shape[1], **p.where())
    bias = p.bias
    if bias is not None:
        seen = seen & ~np.isneginf(bias)
        bias = np.where(seen, bias, poison).astype(bias.dtype) if bias.shape == seen.shape else bias
    unseen = ~per_kv_head(seen.any(axis=2), p.k.shape[1])
    mask = Dense(seen) if bias is not p.bias else p.mask
    want = attend(p.q, p.k, p.v, mask=mask, bias=p.bias, **p.where())
    k, v = poisoned(p.k, unseen, poison), poisoned(p.v, unseen, poison)
    same_bits(attend(p.q, k, v, mask=mask, bias=bias, **p.where()), want)
    weights = maskattn.attention_weights(p.q, p.k, mask=mask, bias=p.bias, **p.where())
    same_bits(maskattn.attention_weights(p.q, k, mask=mask, bias=bias, **p.where()), weights)


@given(problem=problems(), seed=seeds, poison=st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
def test_keys_that_only_other_rows_see_change_no_bit_of_a_row(
    isa: str, problem: Problem, seed: int, poison: float
) -> None:
    p = problem
    if p.q.shape[2] == 0:
        return
    group, rng = p.q.shape[1] // p.k.shape[1], np.random.default_rng(seed)
    heads, row = slice(int(rng.integers(group)), None, group), int(rng.integers(p.q.shape[2]))  # a head of each group
    seen = oracle.visible(p.mask, p.q.shape[2], p.k.shape[2], batch=p.q.shape[0], heads=p.q.shape[1], **p.where())
    unseen = ~seen[:, heads, row]
    k, v = poisoned(p.k, unseen, poison), poisoned(p.v, unseen, poison)
    want = attend(p.q, p.k, p.v, mask=p.mask, bias=p.bias, **p.where())
    for keys, values in [(k, v), (k, p.v), (p.k, v)]:
        got = attend(p.q, keys, values, mask=p.mask, bias=p.bias, **p.where())
        same_bits(got[:, heads, row], want[:, heads, row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("v_head_dim", [20, 64])  # whole vectors, and not
@pytest.mark.parametrize("key", [0, 5, 64, 255, 256, 300, 599])
def test_one_bad_key_in_a_causal_prefill_spoils_no_earlier_row(
    isa: str, dtype: Any, v_head_dim: int, key: int, rng: np.random.Generator
) -> None:
    q, k, v = qkv(rng, 1, 4, 2, 600, 600, 16, v_head_dim, dtype)
    want = attend(q, k, v, mask=Causal())
    for poison in (np.nan, np.inf):
        bad_k, bad_v = k.copy(), v.copy()
        bad_k[:, :, key], bad_v[:, :, key] = poison, poison
        for keys, values in [(k, bad_v), (bad_k, v), (bad_k, bad_v)]:
            got = attend(q, keys, values, mask=Causal())
            same_bits(got[:, :, :key], want[:, :, :key])
        assert not np.isfinite(maskattn.attention(q, k, bad_v, mask=Causal())[:, :, key:]).any()  # later rows see it


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_query_spoils_its_own_row_only(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 2, 1, 30, 300, 16, 16, dtype)
    want = attend(q, k, v, mask=Causal())
    q[:, 0, 7] = np.nan
    got = attend(q, k, v, mask=Causal())
    assert np.isnan(got[:, 0, 7]).all()
    got[:, 0, 7] = want[:, 0, 7]
    same_bits(got, want)


# Memory at the end of which, or inside which, pages cannot be read: reading them ends the process.
UNREADABLE = """
import ctypes, mmap, sys
import ml_dtypes
import numpy as np
import maskattn
from maskattn.masks import *

PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
rng = np.random.default_rng(0)
normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
kept = []

def memory(pages):
    m = mmap.mmap(-1, pages * PAGE)
    kept.append(m)
    return m, ctypes.addressof(ctypes.c_char.from_buffer(m))

def forbid(address, pages):
    assert libc.mprotect(address, pages * PAGE, 0) == 0, ctypes.get_errno()

def fenced(array, end=True):
    # A copy whose last byte (or first) stands beside an unreadable page.
    pages = -(-array.nbytes // PAGE) + 1
    m, address = memory(pages)
    offset = (pages - 1) * PAGE - array.nbytes if end else PAGE
    copy = np.frombuffer(m, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    forbid(address + (pages - 1) * PAGE if end else address, 1)
    return copy

def paged(array, forbidden):
    # A copy of (1, 1, keys, 64) with some pages unreadable.
    m, address = memory(-(-array.nbytes // PAGE))
    copy = np.frombuffer(m, array.dtype, array.size).reshape(array.shape)
    copy[...] = array
    for page in forbidden:
        forbid(address + page * PAGE, 1)
    return copy
"""

HOLES = (
    UNREADABLE
    + """

def check(dtype):
    per = PAGE // (64 * np.dtype(dtype).itemsize)         # keys of a page
    length = 40 * per
    k, v = normal(1, 1, length, 64).astype(dtype), normal(1, 1, length, 64).astype(dtype)
    exist = 29 * per + 3                                  # pages 30 .. 39 are past the end
    hole = np.ones(length, bool)
    hole[5 * per : 17 * per] = False                      # pages 5 .. 16 are hidden
    window = 8 * per
    calls = [
        (range(30, 40), None),
        (range(30, 40), Causal()),
        ([*range(5, 17), *range(30, 40)], KeyPadding(hole)),
        ([*range(5, 17), *range(30, 40)], Causal() & (Padding(5 * per) | ~Padding(17 * per))),
        ([*range(5, 17), *range(30, 40)], Dense(hole & (np.arange(length) % 2 == 0))),
        ([*range(5, 17), *range(30, 40)], Documents(np.ones(length, int), np.where(hole, 1, 2))),
    ]
    for q_len in (1, 7, 100):
        q = normal(1, 3, q_len, 64).astype(dtype)
        cases = calls + ([(range(0, 20), SlidingWindow(left=window))] if q_len < per else [])
        for forbidden, mask in cases:
            bias = normal(3, q_len, length)
            for options in ({}, {"bias": bias}, {"threads": 2}):
                want = maskattn.attention(q, k, v, mask=mask, kv_lengths=exist, **options)
                bad_k, bad_v = paged(k, forbidden), paged(v, forbidden)
                got = maskattn.attention(q, bad_k, bad_v, mask=mask, kv_lengths=exist, **options)
                assert got.tobytes() == want.tobytes(), (dtype, q_len, mask)
            maskattn.attention_weights(q, bad_k, mask=mask, kv_lengths=exist)
            maskattn.attention_weights(q, bad_k, stage="bias", mask=mask, kv_lengths=exist)

for isa in sys.argv[1:]:
    maskattn.set_isa(isa)
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        check(dtype)
print("done")
"""
)

FENCES = (
    UNREADABLE
    + """
for isa in sys.argv[1:]:
    maskattn.set_isa(isa)
    shapes = (1, 1, 1, 1), (3, 5, 3, 17), (7, 70, 17, 5), (13, 300, 40, 33), (1, 257, 63, 64), (20, 130, 64, 15)
    for q_len, kv_len, d, dv in shapes:
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
            arrays = [normal(2, 2, n, m).astype(dtype) for n, m in ((q_len, d), (kv_len, d), (kv_len, dv))]
            bias, keep = normal(q_len, kv_len).astype(dtype), rng.random((q_len, kv_len)) < 0.7
            for end in (True, False):
                out = fenced(np.zeros((2, 2, q_len, dv), dtype), end)
                q, k, v = (fenced(x, end) for x in arrays)
                b, m = fenced(bias, end), fenced(keep, end)
                for options in ({}, {"bias": b}, {"mask": m}, {"mask": Causal()}, {"bias": b, "mask": m}):
                    maskattn.attention(q, k, v, out=out, **options)
                    plain = {n: x.copy() if isinstance(x, np.ndarray) else x for n, x in options.items()}
                    assert out.tobytes() == maskattn.attention(*arrays, **plain).tobytes()
print("done")
"""
)


@pytest.mark.skipif(sys.platform == "win32", reason="needs mmap and mprotect")
@pytest.mark.parametrize("script", [HOLES, FENCES], ids=["hidden pages", "ends of arrays"])
def test_pages_that_cannot_be_read(isa: str, script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, isa], capture_output=True, text=True, timeout=300, env={**os.environ}
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


# 3. One canonical reduction: the bits of a row depend on its query and the keys it sees, and where those stand.

MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": Causal(),
    "window": Causal() & SlidingWindow(left=100),
    "prefix": PrefixLM(300) & ~Padding(3),
    "noise": KeyPadding(np.random.default_rng(1).random(6000) < 0.5) & Causal(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "shape",
    [(1, 4, 2, 333, 700, 40, 33), (1, 1, 1, 1, 5000, 64, 64), (1, 8, 1, 1, 5000, 64, 64), (1, 4, 1, 9, 3000, 20, 64)],
    ids=["prefill", "decode", "decode-shared-keys", "short-prefill"],
)
def test_threads_change_no_bit(
    isa: str, dtype: Any, mask: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    q, k, v = qkv(rng, *shape, dtype)
    bias = normal(rng, shape[4], dtype=dtype)
    bias[::7] = -np.inf
    for options in ({}, {"bias": bias}):
        want = attend(q, k, v, mask=MASKS[mask], threads=1, **options)
        for threads in (2, 3, 8):
            same_bits(attend(q, k, v, mask=MASKS[mask], threads=threads, **options), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_len", [1, 65])
def test_a_sequence_alone_and_anywhere_in_a_batch_of_eight(
    isa: str, dtype: Any, q_len: int, rng: np.random.Generator
) -> None:
    q, k, v = qkv(rng, 8, 4, 2, q_len, 300, 20, 20, dtype)
    lengths = rng.integers(0, 301, 8)
    keep = rng.random((8, 1, 1, 300)) < 0.8
    alone = [
        attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], mask=Causal() & Dense(keep[b]), kv_lengths=int(lengths[b]))
        for b in range(8)
    ]
    for shift in range(8):
        order = np.roll(np.arange(8), shift)
        together = attend(
            q[order], k[order], v[order], mask=Causal() & Dense(keep[order]), kv_lengths=lengths[order], threads=2
        )
        same_bits(together, np.concatenate([alone[b] for b in order]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_query_chunks_change_no_bit(isa: str, dtype: Any, mask: str, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 4, 2, 230, 520, 24, 40, dtype)
    bias = normal(rng, 230, 520, dtype=dtype)
    whole = attend(q, k, v, mask=MASKS[mask], bias=bias)
    for size in (1, 7, 32, 100):
        pieces = [
            attend(q[:, :, i : i + size], k, v, mask=MASKS[mask], bias=bias[i : i + size], q_offset=520 - 230 + i)
            for i in range(0, 230, size)
        ]
        same_bits(np.concatenate(pieces, axis=2), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 3])
def test_a_decoded_row_is_the_row_of_a_prefill(isa: str, dtype: Any, group: int, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 1, 2 * group, 2, 600, 600, 40, 33, dtype)
    for mask in (Causal(), Causal() & SlidingWindow(left=100), Causal() & PrefixLM(7)):
        prefill = attend(q, k, v, mask=mask)
        for i in [*range(0, 40), 63, 64, 65, *range(250, 260), 400, 511, 512, 513, 599]:
            row = q[:, :, i : i + 1]
            n = i + 1
            same_bits(attend(row, k[:, :, :n], v[:, :, :n], mask=mask), prefill[:, :, i : i + 1])  # the cache so far
            same_bits(attend(row, k, v, mask=mask, kv_lengths=n), prefill[:, :, i : i + 1])  # the whole cache
            same_bits(attend(row, k, v, mask=mask, q_offset=i, threads=2), prefill[:, :, i : i + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads_inside", [False, True])
def test_few_rows_are_rows_of_many(isa: str, dtype: Any, heads_inside: bool, rng: np.random.Generator) -> None:
    """Up to 36 rows multiply keys straight from memory, in groups of up to 8."""
    for head_dim in (64, 48):  # with 64 and the heads inside, keys are 4 KB apart
        heads = 4096 // (head_dim * np.dtype(dtype).itemsize)
        shape = (1, 300, heads, head_dim) if heads_inside else (1, heads, 300, head_dim)
        k, v = (normal(rng, *shape, dtype=dtype) for _ in "kv")
        if heads_inside:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        q = normal(rng, 1, heads, 40, head_dim, dtype=dtype)
        many = attend(q, k, v)
        for rows in (1, 2, 6, 7, 8, 9, 17, 36):
            same_bits(attend(q[:, :, :rows], k, v), many[:, :, :rows])


@pytest.mark.parametrize("threads", [2, 3])
def test_ragged_decodes_are_those_of_each_sequence_alone(isa: str, threads: int, rng: np.random.Generator) -> None:
    """Few sequences of very different lengths are cut at keys, and their order in the batch is not that of the work."""
    q, k, v = qkv(rng, 4, 2, 1, 1, 5000, 64, 64, np.float32)
    for lengths in ([100, 5000, 0, 1300], [5000, 1, 1, 1], [64, 65, 300, 17]):
        out = attend(q, k, v, kv_lengths=lengths, threads=threads)
        for b, length in enumerate(lengths):
            one = slice(b, b + 1)
            same_bits(out[one], attend(q[one], k[one, :, :length], v[one, :, :length], threads=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_len", [1, 50])
def test_capacity_and_padding_on_the_right_change_no_bit(
    isa: str, dtype: Any, q_len: int, rng: np.random.Generator
) -> None:
    q, k, v = qkv(rng, 2, 4, 2, q_len, 1000, 24, 24, dtype)
    for n in (1, 63, 64, 65, 255, 256, 257, 600):
        offset = n - q_len
        want = attend(q, k[:, :, :n].copy(), v[:, :, :n].copy(), mask=Causal())
        for capacity in (n, n + 1, 1000):
            keys, values = k[:, :, :capacity], v[:, :, :capacity]
            same_bits(attend(q, keys[:, :, :n], values[:, :, :n], mask=Causal()), want)
            same_bits(attend(q, keys, values, mask=Causal(), kv_lengths=n), want)
            same_bits(attend(q, keys, values, mask=Causal() & Padding(n), q_offset=offset), want)
            padded = attend(q, keys, values, mask=Causal(), kv_lengths=[n, 1])
            same_bits(padded[:1], want[:1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_len", [1, 40])
def test_strides_and_shared_keys_change_no_bit(isa: str, dtype: Any, q_len: int, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 6, 2, q_len, 300, 32, 32, dtype)
    want = attend(q, k, v, mask=Causal())
    for columns in (32, 37):  # rows side by side, and not

        def by_length(x: Array, columns: int = columns) -> Array:
            wide = np.zeros((x.shape[0], x.shape[2], x.shape[1], columns), dtype)
            wide[..., :32] = x.transpose(0, 2, 1, 3)
            return wide.transpose(0, 2, 1, 3)[..., :32]

        same_bits(attend(by_length(q), by_length(k), by_length(v), mask=Causal()), want)
        same_bits(attend(q, by_length(k), v, mask=Causal(), threads=2), want)
    same_bits(attend(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1), mask=Causal()), want)
    for h in range(6):
        one = attend(q[:, h : h + 1], k[:, h // 3 : h // 3 + 1], v[:, h // 3 : h // 3 + 1], mask=Causal())
        same_bits(one, want[:, h : h + 1])


@given(problem=problems())
def test_how_a_mask_is_written_changes_no_bit(isa: str, problem: Problem) -> None:
    p = problem
    want = attend(p.q, p.k, p.v, mask=p.mask, bias=p.bias, **p.where())
    seen = oracle.visible(p.mask, p.q.shape[2], p.k.shape[2], batch=p.q.shape[0], heads=p.q.shape[1], **p.where())
    same_bits(attend(p.q, p.k, p.v, mask=seen, bias=p.bias), want)
    same_bits(attend(p.q, p.k, p.v, mask=~~p.mask, bias=p.bias, **p.where(), threads=2), want)


@given(problem=problems(), data=st.data())
def test_rows_of_any_call_are_those_of_smaller_calls(isa: str, problem: Problem, data: st.DataObject) -> None:
    """One sequence, one key head with its group, some rows: no bit depends on what else a call computes."""
    p = problem
    group = p.q.shape[1] // p.k.shape[1]
    seen = oracle.visible(p.mask, p.q.shape[2], p.k.shape[2], batch=p.q.shape[0], heads=p.q.shape[1], **p.where())
    b, g = data.draw(st.integers(0, p.q.shape[0] - 1)), data.draw(st.integers(0, p.k.shape[1] - 1))
    begin = data.draw(st.integers(0, p.q.shape[2]))
    end = data.draw(st.integers(begin, p.q.shape[2]))
    part = slice(b, b + 1), slice(g * group, (g + 1) * group), slice(begin, end)
    keys = slice(b, b + 1), slice(g, g + 1)
    bias = None if p.bias is None else np.broadcast_to(p.bias, seen.shape)[part]
    whole = attend(p.q, p.k, p.v, mask=p.mask, bias=p.bias, **p.where())
    same_bits(attend(p.q[part], p.k[keys], p.v[keys], mask=seen[part], bias=bias), whole[part])


# 4. Bad arguments raise before any work.


@pytest.mark.parametrize(
    "bad",
    [
        {"q": np.zeros((1, 2, 3, 5), np.float32)},
        {"k": np.zeros((1, 2, 5, 4), np.int64)},
        {"v": np.zeros((1, 2, 6, 4), np.float32)},
        {"v": np.zeros((1, 2, 5, 8), np.float32)[..., ::2]},
        {"mask": np.ones((4, 5), bool)},
        {"mask": np.ones((3, 5))},
        {"mask": Padding([1, 2, 3])},
        {"mask": Causal().plan(4, 5)},
        {"bias": np.zeros((4, 5), np.float32)},
        {"bias": np.zeros(5, np.int32)},
        {"scale": np.nan},
        {"kv_lengths": 6},
        {"kv_lengths": [5, 5]},
        {"q_offset": 0.5, "mask": Causal()},
        {"threads": 0},
        {"softcap": -1.0},
        {"sinks": np.zeros(3, np.float32)},
        {"precision": "best"},
    ],
    ids=lambda bad: ", ".join(bad),
)
def test_bad_arguments_write_nothing(bad: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {name: np.ones((1, 2, n, 4), np.float32) for name, n in (("q", 3), ("k", 5), ("v", 5))}
    out = np.full((1, 2, 3, 4), 77, np.float32)
    maskattn.attention(**arguments, out=out.copy())  # they are good without the bad one
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        maskattn.attention(**{**arguments, **bad}, out=out)
    assert (out == 77).all()
