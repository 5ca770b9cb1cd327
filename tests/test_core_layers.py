"""Layers as one call of the core: the bits of the layers called one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn import KVCache
from maskattn.decoder.activations import ACTIVATIONS
from maskattn.decoder.core_layers import CoreLayers
from maskattn.decoder.layers import FeedForward
from maskattn.decoder.model import Transformer, pad
from maskattn.decoder.norms import PLACEMENTS, LayerNorm
from maskattn.families import FAMILIES
from maskattn.linear import DTYPES
from tiny_families import VOCAB, WIDTH, config, write

LENGTHS, STEPS = (5, 1, 9, 3), 7
WRITES = [name for name, family in FAMILIES.items() if family.decoder]


def states(
    forward: Transformer, name: str, *, fast: bool, monkeypatch: pytest.MonkeyPatch, page_size: int | None = None
) -> list[np.ndarray]:
    """States of ragged sources, prompts, and some steps; sequences leave, change places, and are repeated."""
    rng = np.random.default_rng(3)
    if not fast:
        monkeypatch.setattr(forward, "_core_encoder", None)
        monkeypatch.setattr(forward, "_core_decoder", None)
    memory, found = None, []
    if forward.encoder is not None:
        features = [rng.standard_normal((7, 20), dtype=np.float32) for _ in LENGTHS]
        sources = features if name == "whisper" else [rng.integers(2, VOCAB, n) for n in (4, 9, 2, 6)]
        found.append(forward.encode_hidden(sources)[0])
        memory = forward.encode(sources)
    tokens, lengths = pad([rng.integers(2, VOCAB, n) for n in LENGTHS])
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    found.append(forward.decode(tokens, memory, new_lengths=lengths)[real])
    cache = forward.new_cache(len(LENGTHS), 40, page_size=page_size)
    found.append(forward.decode(tokens, memory, cache, new_lengths=lengths)[real])
    for some in ([3, 0, 1, 4], [2, 0, 2, 0], [0, 0, 0, 0]):  # as many as sequences, too, but not one of each
        counts = np.array(some)
        found.append(forward.decode(tokens[:, :4], memory, cache, new_lengths=counts)[np.arange(4) < counts[:, None]])
        assert cache[0].extremes == (cache.lengths.min(), cache.lengths.max())
    for step in range(STEPS):
        if step in (2, 4):
            rows = np.array([2, 0, 3, 0] if step == 2 else [1, 3, 2])
            cache.reorder(rows)
            memory = None if memory is None else memory.reorder(rows)
        new = rng.integers(2, VOCAB, (len(cache[0].lengths), 1))
        found.append(forward.decode(new, memory, cache))
        assert {layer.kv_len for layer in cache} == {cache[0].kv_len}
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WRITES)
def test_every_family(name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = maskattn.load(write(tmp_path, config(name)), dtype=dtype)._forward
    assert forward._core_decoder is not None
    assert forward.encoder is None or forward._core_encoder is not None
    whole = states(forward, name, fast=True, monkeypatch=monkeypatch)
    paged = states(forward, name, fast=True, monkeypatch=monkeypatch, page_size=16)
    layers = states(forward, name, fast=False, monkeypatch=monkeypatch)
    for got, in_pages, want in zip(whole, paged, layers, strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(in_pages, want)


@pytest.mark.parametrize("name", ["marian", "t5", "llama", "gpt_neox", "gemma2"])
def test_on_every_instruction_set(isa: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_every_family(name, "int8", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_of_whole_blocks(name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 outputs of a gate are multiplied with those of the other half as soon as both are there."""
    forward = maskattn.load(write(tmp_path, config(name) | {"intermediate_size": 192}), dtype=dtype)._forward
    at_once = states(forward, name, fast=True, monkeypatch=monkeypatch)
    for got, want in zip(at_once, states(forward, name, fast=False, monkeypatch=monkeypatch), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.fixture
def marian(tmp_path: Path) -> Transformer:
    forward: Transformer = maskattn.load(write(tmp_path, config("marian")))._forward
    return forward


def test_a_full_cache_is_left_alone(marian: Transformer) -> None:
    assert marian._core_decoder is not None
    memory, cache = marian.encode([np.array([3, 4])] * 2), marian.new_cache(2, 3)
    marian.decode(np.full((2, 3), 5), memory, cache)
    for counts in ([1, 1], [2, 2], [0, 2]):
        x = np.ones((sum(counts), 24), np.float32)
        with pytest.raises(ValueError, match=f"capacity must be at least {3 + counts[1]}"):
            marian._core_decoder.run(x, np.array(counts), cache=cache, memory=memory)
        np.testing.assert_array_equal(x, 1)
        np.testing.assert_array_equal(cache.lengths, 3)


def test_what_does_not_belong_together(marian: Transformer) -> None:
    assert marian._core_decoder is not None
    memory, x, run = marian.encode([np.array([3, 4])]), np.ones((2, 24), np.float32), marian._core_decoder.run
    with pytest.raises(ValueError, match="memory must be given to layers with cross-attention, got None"):
        run(x, np.array([1, 1]))
    with pytest.raises(ValueError, match=r"starts must have shape \(2,\), got"):
        run(x, np.array([1, 1]), memory=memory)
    with pytest.raises(ValueError, match="counts must be 0 or more, got -1"):
        run(x, np.array([3, -1]), memory=memory.reorder(np.array([0, 0])))
    with pytest.raises(ValueError, match=r"x must have shape \(3, 24\), got"):
        run(x, np.array([3]), memory=memory)
    with pytest.raises(ValueError, match="memory must hold what starts and lengths say"):
        run(x, np.array([2]), memory=replace(memory, lengths=np.array([3])))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", WRITES)
def test_steps_in_one_call(name: str, dtype: str, tmp_path: Path) -> None:
    """Embedding, layers and last norm in one call have the bits of a pass over the same tokens."""
    unprojected = {"word_embed_proj_dim": WIDTH} if name == "opt" else {}
    forward = maskattn.load(write(tmp_path, config(name) | unprojected), dtype=dtype)._forward
    rng, memory = np.random.default_rng(5), None
    if forward.encoder is not None:
        features = [rng.standard_normal((7, 20), dtype=np.float32) for _ in LENGTHS]
        memory = forward.encode(features if name == "whisper" else [rng.integers(2, VOCAB, n) for n in (4, 9, 2, 6)])
    prompts, lengths = pad([rng.integers(2, VOCAB, n) for n in LENGTHS])
    caches = [forward.new_cache(len(LENGTHS), 20) for _ in range(2)]
    for cache in caches:
        forward.decode(prompts, memory, cache, new_lengths=lengths)
    steps = forward.steps(memory, caches[0])
    assert steps is not None
    for _ in range(4):
        tokens = rng.integers(2, VOCAB, len(LENGTHS))
        assert steps.go_on()
        np.testing.assert_array_equal(steps(tokens), forward.decode(tokens[:, None], memory, caches[1])[:, 0])
        np.testing.assert_array_equal(caches[0].lengths, caches[1].lengths)
    for got, want in zip(caches[0], caches[1], strict=True):
        np.testing.assert_array_equal(got.arrays()[0].view(np.uint8), want.arrays()[0].view(np.uint8))


def test_steps_end_where_the_cache_is_another(marian: Transformer, tmp_path: Path) -> None:
    memory = marian.encode([np.array([3, 4])] * 2)

    def begun() -> tuple[KVCache, Any]:
        cache = marian.new_cache(2, 4)
        marian.decode(np.full((2, 2), 5), memory, cache)
        return cache, marian.steps(memory, cache)

    tokens = np.array([5, 6])
    for change in (
        lambda cache: cache.truncate(1),
        lambda cache: cache.reorder([1, 0]),
        lambda cache: cache.fork(),
        lambda cache: cache[1].append(np.ones((2, 2, 1, 12)), np.ones((2, 2, 1, 12))),
        lambda cache: cache.truncate([2, 1]),
    ):
        cache, steps = begun()
        steps(tokens)
        assert steps.go_on()
        change(cache)
        assert not steps.go_on()
    cache, steps = begun()
    steps(tokens)
    steps(tokens)
    assert not steps.go_on()  # it is full
    with pytest.raises(ValueError, match=f"tokens must be from 0 to {VOCAB - 1}, got {VOCAB}"):
        begun()[1](np.array([5, VOCAB]))
    opt: Transformer = maskattn.load(write(tmp_path / "opt", config("opt")))._forward
    cache = opt.new_cache(1, 4)
    opt.decode(np.full((1, 2), 5), None, cache)
    assert opt.steps(None, cache) is None  # its embeddings are projected
    assert marian.steps(memory, marian.new_cache(2, 4)) is None  # nobody has a page yet
    assert marian.steps(memory, marian.new_cache(2, 4, page_size=16)) is None


def test_a_ring_is_left_to_the_layers(marian: Transformer) -> None:
    assert CoreLayers.takes(marian.new_cache(1))
    assert not CoreLayers.takes(KVCache(1, 1, 1, 64, 8, window=16))
    assert not CoreLayers.takes(KVCache(1, 1, 1, 64, 8, dtype="int8"))


def test_shared_pages_are_copied_first(marian: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork, and beams that continue the same one: others' keys stay, and the bits are those of the layers."""
    found = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(marian, "_core_decoder", None)
        memory, cache = marian.encode([np.array([3, 4])] * 3), marian.new_cache(3, 30)
        marian.decode(np.array([[5, 6], [7, 8], [9, 5]]), memory, cache)
        other = cache.fork()
        keys = other[0].arrays()[0].copy()
        states = []
        for beams in ([0, 0, 2], [1, 1, 1], [2, 0, 1]):
            cache.reorder(np.array(beams))
            states.append(marian.decode(np.array([[5], [6], [7]]), memory, cache))
        np.testing.assert_array_equal(other[0].arrays()[0], keys)
        found.append(np.stack([*states]))
    np.testing.assert_array_equal(*found)


def test_parts_that_the_core_does_not_know(marian: Transformer) -> None:
    assert marian.decoder is not None
    one = replace(marian.decoder, layers=marian.decoder.layers[:1], masks=marian.decoder.masks[:1])
    layer = one.layers[0]
    feed_forward: Any = layer.feed_forward
    for known in (layer, replace(layer, attention_norm=LayerNorm(np.ones(24, np.float32)))):
        assert CoreLayers.of(replace(one, layers=(known,))) is not None
    for strange in (
        replace(layer, feed_forward_norm=lambda x: x),
        replace(layer, feed_forward=lambda x: x),
        replace(layer, feed_forward=replace(feed_forward, activation=np.tanh)),
        replace(layer, feed_forward=FeedForward(*unpacked(feed_forward), ACTIVATIONS["relu"])),
    ):
        assert CoreLayers.of(replace(one, layers=(strange,))) is None
    mixed = (layer, replace(layer, placement=PLACEMENTS["pre"]))
    assert CoreLayers.of(replace(one, layers=mixed, masks=2 * one.masks)) is None


def unpacked(part: Any) -> list[Any]:
    """Maps whose weights are arrays."""
    return [
        replace(linear, weight=linear.weight.rows(np.arange(linear.out_features))) for linear in (part.up, part.down)
    ]
