"""A token through all layers in one call of the core: the bits of the layers called one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn.decoder.activations import ACTIVATIONS
from maskattn.decoder.layers import FeedForward
from maskattn.decoder.model import Transformer, pad
from maskattn.decoder.norms import PLACEMENTS, LayerNorm
from maskattn.decoder.step import Step
from maskattn.families import FAMILIES
from maskattn.linear import DTYPES
from tiny_families import VOCAB, config, write

LENGTHS, STEPS = (5, 1, 9, 3), 7
WRITES = [name for name, family in FAMILIES.items() if family.decoder]


def states(forward: Transformer, name: str, *, fast: bool, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Hidden states of ragged prompts and of some steps; sequences leave, and change places, on the way."""
    rng = np.random.default_rng(3)
    if not fast:
        monkeypatch.setattr(forward, "_step", None)
    memory = None
    if forward.encoder is not None:
        features = [rng.standard_normal((7, 20), dtype=np.float32) for _ in LENGTHS]
        memory = forward.encode(features if name == "whisper" else [rng.integers(2, VOCAB, n) for n in (4, 9, 2, 6)])
    tokens, lengths = pad([rng.integers(2, VOCAB, n) for n in LENGTHS])
    cache = forward.new_cache(len(LENGTHS), 30)
    found = [forward.decode(tokens, memory, cache, new_lengths=lengths)]
    for step in range(STEPS):
        if step in (2, 4):
            rows = np.array([2, 0, 3] if step == 2 else [1, 2])
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
    assert forward._step is not None
    whole = states(forward, name, fast=True, monkeypatch=monkeypatch)
    for got, want in zip(whole, states(forward, name, fast=False, monkeypatch=monkeypatch), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["marian", "t5", "llama", "gpt_neox", "gemma2"])
def test_on_every_instruction_set(isa: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_every_family(name, "int8", tmp_path, monkeypatch)


@pytest.fixture
def marian(tmp_path: Path) -> Transformer:
    forward: Transformer = maskattn.load(write(tmp_path, config("marian")))._forward
    return forward


@pytest.mark.parametrize("name", ["full", "empty"])
def test_a_cache_that_needs_more_than_writing_is_left_alone(marian: Transformer, name: str) -> None:
    """Then the layers do it one by one, and refuse what they refuse."""
    assert marian._step is not None
    tokens, memory = np.full((2, 3), 5), marian.encode([np.array([3, 4])] * 2)
    cache = marian.new_cache(2, 3 if name == "full" else 30)
    if name == "full":
        marian.decode(tokens, memory, cache)
    x, before = np.ones((2, 1, 24), np.float32), cache[0].lengths.copy()
    assert not marian._step.run(x, cache, memory, None)
    np.testing.assert_array_equal(x, 1)
    np.testing.assert_array_equal(cache[0].lengths, before)
    if name == "full":
        with pytest.raises(ValueError, match="capacity must be at least 4"):
            marian.decode(tokens[:, :1], memory, cache)


def test_shared_pages_are_copied_first(marian: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork, and beams that continue the same one: others' keys stay, and the bits are those of the layers."""
    found = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(marian, "_step", None)
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
    layer, rest = marian.decoder.layers[0], (marian.decoder.masks[:1], marian.decoder.positions)
    feed_forward: Any = layer.feed_forward
    for known in (layer, replace(layer, attention_norm=LayerNorm(np.ones(24, np.float32)))):
        assert Step.of([known], *rest) is not None
    for strange in (
        replace(layer, feed_forward_norm=lambda x: x),
        replace(layer, feed_forward=lambda x: x),
        replace(layer, feed_forward=replace(feed_forward, activation=np.tanh)),
        replace(layer, feed_forward=FeedForward(*unpacked(feed_forward), ACTIVATIONS["relu"])),
    ):
        assert Step.of([strange], *rest) is None
    assert Step.of([layer, replace(layer, placement=PLACEMENTS["pre"])], 2 * rest[0], rest[1]) is None


def unpacked(part: Any) -> list[Any]:
    """Maps whose weights are arrays."""
    return [
        replace(linear, weight=linear.weight.rows(np.arange(linear.out_features))) for linear in (part.up, part.down)
    ]
