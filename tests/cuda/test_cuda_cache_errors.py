"""Errors of a cache on a device: those of any cache, and nothing has happened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device_arrays import Lent, on_device
from test_cuda_cache import MADE, filled

import maskattn
from cache_model import state
from maskattn import KVCache, masks
from maskattn.cuda.module import compiled


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return on_device(np.ones(shape, dtype))


class Elsewhere(Lent):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)


def test_a_graph_appends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(**MADE, device="cuda")
    monkeypatch.setattr(compiled, "is_capturing", lambda stream: True)
    with pytest.raises(ValueError, match=r"^k must not be appended while a graph is captured"):
        cache[0].append(ones(2, 2, 3, 8), ones(2, 2, 3, 6))
    assert not cache.lengths.any()


def test_what_a_device_does_not_store() -> None:
    with pytest.raises(TypeError, match=r"^dtype must be one of float32, float16, bfloat16, int8 on CUDA, got float64"):
        KVCache(**MADE, dtype=np.float64, device="cuda")
    with pytest.raises(ValueError, match=r'^device must be "cuda" or "cuda:" and a number, got \'cpu\''):
        KVCache(**MADE, device="cpu")


APPENDING: list[tuple[Any, type[Exception], str]] = [
    (lambda: {"k": np.ones((2, 2, 3, 8))}, TypeError, "^k must be a CUDA array, as the keys of the cache are, got nd"),
    (lambda: {"v": [1.0]}, TypeError, "^v must be a CUDA array, as the keys of the cache are, got list"),
    (lambda: {"k": Elsewhere(ones(2, 2, 3, 8))}, ValueError, "^k must be on cuda:0, where the cache is, .* on cuda:1"),
    (lambda: {"v": Elsewhere(ones(2, 2, 3, 6))}, ValueError, "^v must be on cuda:0, where k is, .* on cuda:1"),
    (lambda: {"k": ones(2, 2, 3, 8, dtype=np.float64)}, TypeError, "^k must be float32, float16 or bfloat16 on CUDA"),
    (lambda: {"k": ones(2, 3, 8)}, ValueError, r"^k must have shape .* = \(2, 2, n, 8\), got \(2, 3, 8\)"),
    (lambda: {"v": ones(2, 2, 2, 6)}, ValueError, "^v must have as many tokens as k, 3, got 2"),
    (lambda: {"lengths": 4}, ValueError, "^lengths must be from 0 to the 3 tokens of k of sequence 0, got 4"),
    (lambda: {"k": ones(2, 2, 99, 8), "v": ones(2, 2, 99, 6)}, ValueError, "^capacity must be at least 104 to append"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), APPENDING, ids=[case[2] for case in APPENDING])
@pytest.mark.parametrize("options", [{}, {"window": 16}], ids=str)
def test_bad_appends_store_nothing(options: Any, wrong: Any, error: type[Exception], message: str) -> None:
    cache = KVCache(**MADE, **options, device="cuda")
    cache[0].append(ones(2, 2, 5, 8), ones(2, 2, 5, 6))
    before = state(cache)
    with pytest.raises(error, match=message):
        cache[0].append(**({"k": ones(2, 2, 3, 8), "v": ones(2, 2, 3, 6)} | wrong()))
    assert state(cache) == before


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda: {"v": ones(2, 2, 5, 16)}, TypeError, "^v must be left out where k is a layer"),
        (lambda: {"kv_lengths": 3}, ValueError, "^kv_lengths must be left out where k is a layer"),
        (lambda: {"q": ones(3, 4, 1, 24)}, ValueError, "^q must have the cache's batch 2, got 3"),
        (lambda: {"q": ones(2, 3, 1, 24)}, ValueError, "^k must have a number of heads that divides q's 3"),
        (lambda: {"q": ones(2, 4, 1, 23)}, ValueError, "^k must have q's head_dim 23, got 24"),
        (
            lambda: {"q": ones(2, 4, 1, 24, dtype=np.float16)},
            TypeError,
            "^k must have the dtype of q, float16, on CUDA",
        ),
        (
            lambda: {"mask": masks.Causal().plan(1, 5, kv_lengths=4)},
            ValueError,
            "^kv_lengths and q_offset must be those",
        ),
        (
            lambda: {"k": KVCache(1, 2, 2, 9, 24)[0]},
            TypeError,
            "^k must be a cache's layer on the device, as q is, got",
        ),
    ],
)
def test_arguments_that_do_not_fit_a_layer(
    bad: Any, error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    good: dict[str, Any] = {"q": ones(2, 4, 1, 24), "k": filled(rng, "pages of 16", np.float32, 5)[0]}
    maskattn.attention(**good)
    with pytest.raises(error, match=message):
        maskattn.attention(**{**good, **bad()})


def test_a_prepared_call_takes_no_cache() -> None:
    layer: Any = KVCache(**MADE, device="cuda")[0]
    with pytest.raises(TypeError, match=r"^k must be an array, got a cache's DeviceLayer, which grows"):
        maskattn.prepare(ones(2, 4, 3, 8), layer, layer)
