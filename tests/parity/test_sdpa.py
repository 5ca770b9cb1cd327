"""attention() says what torch.nn.functional.scaled_dot_product_attention says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import maskattn  # noqa: E402 - after the skip
from maskattn.masks import Causal, Dense, Padding  # noqa: E402
from strategies import normal  # noqa: E402

Array = Any


def sdpa(q: Array, k: Array, v: Array, **options: Any) -> Array:
    arrays = (torch.from_numpy(np.ascontiguousarray(x)) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*arrays, **options).numpy()


def agree(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)


def qkv(rng: np.random.Generator, q_len: int = 33, kv_len: int = 33, head_dim: int = 24, kv_heads: int = 4) -> Any:
    return tuple(normal(rng, 2, h, n, head_dim) for h, n in ((4, q_len), (kv_heads, kv_len), (kv_heads, kv_len)))


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (33, 33), (5, 300), (300, 5), (1, 1000)])
@pytest.mark.parametrize("head_dim", [1, 24, 64, 129])
def test_without_a_mask(isa: str, q_len: int, kv_len: int, head_dim: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, q_len, kv_len, head_dim)
    agree(maskattn.attention(*arrays), sdpa(*arrays))


@pytest.mark.parametrize("length", [1, 2, 64, 300])
def test_causal(isa: str, length: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, length, length)
    agree(maskattn.attention(*arrays, mask=Causal()), sdpa(*arrays, is_causal=True))


@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 9), (70, 300)])
def test_is_causal_is_top_left(isa: str, q_len: int, kv_len: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, q_len, kv_len)
    agree(maskattn.attention(*arrays, mask=Causal(), q_offset=0), sdpa(*arrays, is_causal=True))


@pytest.mark.parametrize("shape", [(20, 90), (1, 90), (2, 1, 1, 90), (1, 4, 20, 90), (2, 4, 20, 90)])
def test_bool_mask(isa: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = qkv(rng, 20, 90)
    keep = rng.random(shape) < 0.5
    agree(maskattn.attention(*arrays, mask=keep), sdpa(*arrays, attn_mask=torch.from_numpy(keep)))


@pytest.mark.parametrize("shape", [(20, 90), (2, 1, 1, 90), (2, 4, 20, 90)])
def test_additive_mask(isa: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = qkv(rng, 20, 90)
    bias = normal(rng, *shape)
    agree(maskattn.attention(*arrays, bias=bias), sdpa(*arrays, attn_mask=torch.from_numpy(bias)))
    bias[rng.random(shape) < 0.5] = -np.inf
    agree(maskattn.attention(*arrays, bias=bias), sdpa(*arrays, attn_mask=torch.from_numpy(bias)))


@pytest.mark.parametrize("low", [-1e4, -1e9, float(np.finfo(np.float32).min)])
def test_large_negative_numbers_for_hidden_keys(isa: str, low: float, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 20, 20)
    bias = np.where(np.tri(20, dtype=bool), 0, low).astype(np.float32)
    agree(maskattn.attention(*arrays, bias=bias), sdpa(*arrays, attn_mask=torch.from_numpy(bias)))


def test_our_masks_as_torch_takes_them(isa: str, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 20, 90)
    mask = (Causal() & ~Padding(2)) | Dense(rng.random((20, 90)) < 0.1)
    want = maskattn.attention(*arrays, mask=mask)
    agree(want, sdpa(*arrays, attn_mask=torch.from_numpy(mask.to_bool(20, 90))))
    agree(want, sdpa(*arrays, attn_mask=torch.from_numpy(mask.to_additive(20, 90))))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fewer_key_heads(isa: str, kv_heads: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 50, 50, kv_heads=kv_heads)
    agree(maskattn.attention(*arrays, mask=Causal()), sdpa(*arrays, is_causal=True, enable_gqa=True))


@pytest.mark.parametrize("scale", [1.0, 0.3, -0.2])
def test_scale(isa: str, scale: float, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 20, 90, head_dim=8)
    agree(maskattn.attention(*arrays, scale=scale), sdpa(*arrays, scale=scale))


def test_values_of_another_dimension(isa: str, rng: np.random.Generator) -> None:
    q, k, _ = qkv(rng, 20, 90)
    v = normal(rng, 2, 4, 90, 40)
    agree(maskattn.attention(q, k, v), sdpa(q, k, v))


def test_double(isa: str, rng: np.random.Generator) -> None:
    arrays = tuple(x.astype(np.float64) for x in qkv(rng, 50, 90))
    np.testing.assert_allclose(maskattn.attention(*arrays), sdpa(*arrays), rtol=0, atol=1e-12)


def test_rows_that_see_nothing(isa: str, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 20, 90)
    keep = rng.random((20, 90)) < 0.5
    keep[[0, 7]] = False
    got = maskattn.attention(*arrays, mask=keep)
    assert not got[:, :, [0, 7]].any()
    agree(got, sdpa(*arrays, attn_mask=torch.from_numpy(keep)))


def test_transposed_views(isa: str, rng: np.random.Generator) -> None:
    arrays = tuple(normal(rng, 2, 50, 4, 24).transpose(0, 2, 1, 3) for _ in range(3))
    agree(maskattn.attention(*arrays, mask=Causal()), sdpa(*arrays, is_causal=True))
