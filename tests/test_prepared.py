"""Prepared calls: the bits of attention, its errors, and no allocation."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
from maskattn import ALiBi, KVCache, RelativeBias
from maskattn.masks import Causal, Padding, SlidingWindow
from strategies import Array, Problem, normal, problems


def qkv(rng: np.random.Generator, q_len: int = 1, kv_len: int = 16, dtype: Any = np.float32) -> tuple[Array, ...]:
    return normal(rng, 2, 4, q_len, 24, dtype=dtype), *normal(rng, 2, 2, 2, kv_len, 24, dtype=dtype)


def same_bits(got: Any, want: Any) -> None:
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


@given(problem=problems(), scale=st.sampled_from([None, 0.3, -1]), softcap=st.sampled_from([0, 5]))
def test_the_bits_of_attention(isa: str, problem: Problem, scale: float | None, softcap: float) -> None:
    p = problem
    options: dict[str, Any] = {"mask": p.mask, "bias": p.bias, "scale": scale, "softcap": softcap, **p.where()}
    examples = [np.empty_like(x) for x in (p.q, p.k, p.v)]
    call = maskattn.prepare(*examples, return_lse=True, **options)
    want = maskattn.attention(p.q, p.k, p.v, return_lse=True, **options)
    same_bits(call(p.q, p.k, p.v), want)
    transposed = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (p.q, p.k, p.v)]
    out = np.full_like(want[0], np.nan)
    got = call(*transposed, out=out)
    assert got[0] is out
    same_bits(got, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("bias", [None, "array", "alibi", "relative"])
def test_lengths_of_each_call(isa: str, dtype: Any, bias: Any, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 3, 300, dtype)
    made = {
        None: None,
        "array": normal(rng, 4, 3, 300),
        "alibi": ALiBi.for_heads(4),
        "relative": RelativeBias(normal(rng, 8, 4), max_distance=20),
    }[bias]
    call = maskattn.prepare(q, k, v, bias=made, sinks=np.ones(4), kv_lengths=[7, 290])
    out = np.empty_like(q)
    lengths: list[Any] = [None, 300, 0, [1, 299], np.array([300, 64]), np.array([5, 70], np.int32), np.arange(60)[::59]]
    for given_lengths in lengths:
        want = maskattn.attention(
            q, k, v, bias=made, sinks=np.ones(4), kv_lengths=[7, 290] if given_lengths is None else given_lengths
        )
        assert call(q, k, v, out=out, kv_lengths=given_lengths) is out
        same_bits([out], [want])


def test_a_bias_array_is_read_in_every_call(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng)
    bias = normal(rng, 4, 1, 16)
    call = maskattn.prepare(q, k, v, bias=bias)
    before = call(q, k, v)
    bias *= 2
    same_bits([call(q, k, v)], [maskattn.attention(q, k, v, bias=bias)])
    assert not np.array_equal(before, call(q, k, v))


def test_a_plan_is_kept_as_it_was(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 4, 16)
    plan = Causal().plan(4, 16)
    call = maskattn.prepare(q, k, v, mask=plan)
    want = maskattn.attention(q, k, v, mask=plan)
    plan.extend()
    same_bits([call(q, k, v)], [want])


def test_what_was_given_may_be_gone(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 5, 70)
    bias = normal(rng, 5, 70)
    options: dict[str, Any] = {"mask": Causal() & SlidingWindow(20), "q_offset": 60}
    want = maskattn.attention(q, k, v, bias=bias, **options)
    call = maskattn.prepare(np.empty_like(q), np.empty_like(k), np.empty_like(v), bias=bias, **options)
    del bias, options
    same_bits([call(q, k, v)], [want])


def test_set_isa_and_threads_are_those_of_the_call(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 64, 300)
    call = maskattn.prepare(q, k, v)
    before, threads = maskattn.info()["isa"], maskattn.num_threads()
    try:
        for isa in maskattn.runnable_isas():
            maskattn.set_isa(isa)
            for count in (1, 2):
                maskattn.set_num_threads(count)
                same_bits([call(q, k, v)], [maskattn.attention(q, k, v)])
    finally:
        maskattn.set_isa(before)
        maskattn.set_num_threads(threads)


def test_many_python_threads_at_once(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 2, 600)
    call = maskattn.prepare(q, k, v, bias=ALiBi.for_heads(4), threads=2)
    lengths = [[n, 600 - n] for n in range(0, 600, 7)]
    want = [maskattn.attention(q, k, v, bias=ALiBi.for_heads(4), kv_lengths=n).tobytes() for n in lengths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: call(q, k, v, kv_lengths=n).tobytes(), lengths * 3)) == want * 3


# Errors


Q, K = np.zeros((2, 4, 3, 8), np.float32), np.zeros((2, 2, 16, 8), np.float32)
OUT = np.zeros_like(Q)
READ_ONLY = np.zeros_like(Q)
READ_ONLY.flags.writeable = False
WRONG: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((Q, K), {}, TypeError, "^a prepared call takes q, k, v .* got no v$"),
    ((Q, K, K, OUT), {}, TypeError, "^a prepared call takes .* got 4 positional arguments$"),
    ((Q, K, K), {"mask": None}, TypeError, "^a prepared call takes .* got 'mask'$"),
    ((Q, K, K), {"k": K}, TypeError, "^a prepared call takes .* got k twice$"),
    (([1.0], K, K), {}, TypeError, r"^q must be a NumPy array, got list; pass np.asarray\(q\)$"),
    ((Q.astype(np.float64), K, K), {}, TypeError, r"^q must be float32 \(2, 4, 3, 8\), as .* got float64 array"),
    (
        (Q, K[:1], K),
        {},
        ValueError,
        r"^k must be float32 .* shape \(1, 2, 16, 8\); prepare another call$",
    ),
    ((Q, K, K[0]), {}, ValueError, r"^v must be float32 \(2, 2, 16, 8\), .* shape \(2, 16, 8\)"),
    ((Q, K, np.zeros((2, 2, 16, 16), np.float32)[..., ::2]), {}, ValueError, "^v must have a contiguous last axis"),
    ((Q, K, K), {"out": OUT[:1]}, ValueError, r"^out must have shape \(2, 4, 3, 8\), got"),
    ((Q, K, K), {"out": OUT.astype(np.float16)}, TypeError, "^out must have the dtype of q, float32, got float16"),
    ((Q, K, K), {"out": [1]}, TypeError, "^out must be a NumPy array, got list"),
    ((Q, K, K), {"out": READ_ONLY}, ValueError, "^out must be writeable"),
    ((Q, K, K), {"out": Q}, ValueError, "^out must not share memory with q"),
    ((Q, K, K), {"kv_lengths": 17}, ValueError, "^kv_lengths must be from 0 to kv_len = 16, got 17"),
    ((Q, K, K), {"kv_lengths": np.array([3, -1])}, ValueError, "^kv_lengths must be from 0 to kv_len = 16, got -1"),
    ((Q, K, K), {"kv_lengths": [1, 2, 3]}, ValueError, r"^kv_lengths must be an integer or have shape \(2,\)"),
    ((Q, K, K), {"kv_lengths": 2.0}, TypeError, "^kv_lengths must be an integer or an integer array"),
]


@pytest.mark.parametrize(("arrays", "options", "error", "text"), WRONG, ids=[case[3] for case in WRONG])
def test_errors_of_the_call(
    arrays: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    call: Any = maskattn.prepare(Q, K, K)
    with pytest.raises(error, match=text):
        call(*arrays, **options)
    assert not OUT.any()


def test_errors_of_the_preparation() -> None:
    with pytest.raises(ValueError, match=r"^k must have q's head_dim 8, got 7"):
        maskattn.prepare(Q, K[..., :7], K)
    with pytest.raises(ValueError, match=r"^mask must be planned for .* = \(2, 4, 3, 16\)"):
        maskattn.prepare(Q, K, K, mask=Causal().plan(2, 16))
    layer: Any = KVCache(layers=1, batch=2, kv_heads=2, capacity=16, head_dim=8)[0]
    with pytest.raises(TypeError, match=r"^k must be an array, got a cache's Layer"):
        maskattn.prepare(Q, layer, layer)


@pytest.mark.parametrize("options", [{"mask": Causal()}, {"mask": Padding([3, 4])}, {"q_offset": 2}], ids=str)
def test_a_lowered_mask_keeps_its_lengths(options: dict[str, Any]) -> None:
    call = maskattn.prepare(Q, K, K, **options)
    with pytest.raises(ValueError, match=r"^kv_lengths must be left out where .* a mask or q_offset"):
        call(Q, K, K, kv_lengths=3)


def test_it_cannot_be_made_by_hand() -> None:
    kind: Any = type(maskattn.prepare(Q, K, K))
    with pytest.raises(TypeError):
        kind()
    with pytest.raises(TypeError):
        kind.__new__(kind)(Q, K, K)
    with pytest.raises(TypeError):
        type("Mine", (kind,), {})


def test_repr() -> None:
    want = "<maskattn call prepared for q float32 (2, 4, 3, 8), k float32 (2, 2, 16, 8), v float32 (2, 2, 16, 8)>"
    assert repr(maskattn.prepare(Q, K, K)) == want


# Nothing is allocated.

COUNTER = """
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_memalign(size_t, size_t);
long allocations;
void *malloc(size_t size) { ++allocations; return __libc_malloc(size); }
void *aligned_alloc(size_t align, size_t size) { ++allocations; return __libc_memalign(align, size); }
int posix_memalign(void **p, size_t align, size_t size) { ++allocations; *p = __libc_memalign(align, size); return 0; }
"""

COUNTED = """
import ctypes, itertools, sys
import numpy as np, maskattn
from maskattn.masks import Causal

def count(call):
    for _ in range(3):
        call()
    before = allocations.value
    for _ in itertools.repeat(None, 1000):
        call()
    return allocations.value - before

allocations = ctypes.c_long.in_dll(ctypes.CDLL(sys.argv[1]), "allocations")
q, k = np.ones((2, 4, 1, 64), np.float32), np.ones((2, 2, 40, 64), np.float32)
out, lengths = np.empty_like(q), np.array([40, 7])
for bias in (None, np.zeros((4, 1, 40), np.float16), maskattn.ALiBi.for_heads(4)):
    call = maskattn.prepare(q, k, k, bias=bias, threads=1)
    print(count(lambda: call(q, k, k, out=out)), count(lambda: call(q, k, k, out=out, kv_lengths=lengths)), end=" ")
call = maskattn.prepare(q, k, k, mask=Causal(), softcap=3, threads=1)
print(count(lambda: call(q, k, k, out=out)))
print(count(lambda: call(q, k, k)))  # a new array each
"""

COMPILER = os.environ.get("CC") or shutil.which("cc")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not COMPILER, reason="needs glibc and a C compiler")
def test_a_call_with_out_allocates_nothing(tmp_path: Path) -> None:
    """Not even Python objects, which come from malloc here."""
    (tmp_path / "count.c").write_text(COUNTER)
    library = tmp_path / "count.so"
    command = [str(COMPILER), "-shared", "-fPIC", "-fno-builtin", str(tmp_path / "count.c"), "-o", str(library)]
    subprocess.run(command, check=True, timeout=60)
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(library)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    none, some = done.stdout.splitlines()
    assert all(int(count) < 10 for count in none.split()), none  # a few of the counting itself
    assert int(some) >= 1000  # it does count


def test_a_call_with_out_makes_no_python_objects(rng: np.random.Generator) -> None:
    q, k, v = qkv(rng)
    call, out = maskattn.prepare(q, k, v), np.empty_like(q)
    call(q, k, v, out=out)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call(q, k, v, out=out)
        assert tracemalloc.get_traced_memory()[1] - before < 200  # the numbers of the question itself
        tracemalloc.reset_peak()
        call(q, k, v)
        assert tracemalloc.get_traced_memory()[1] - before > q.nbytes
    finally:
        tracemalloc.stop()
