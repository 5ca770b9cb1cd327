"""Every storage of the KV cache against lists of tokens: whatever is done to it, and in whatever order."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cache_model import LayerModel, SequenceModel, Token, as_stored, check_layer, check_pages
from maskattn import KVCache
from maskattn.cache import Draft, Layer
from strategies import Array, seeds

LAYERS, KV_HEADS, CAPACITY, HEAD_DIM, V_HEAD_DIM = 2, 2, 120, 3, 2

STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "paged 16": {"page_size": 16},
    "paged 32": {"page_size": 32},
    "ring 20": {"window": 20},
    "ring 33 in pages of 16": {"window": 33, "page_size": 16},
    "contiguous int8": {"dtype": "int8"},
    "paged int8": {"dtype": "int8", "page_size": 16},
    "ring int8": {"dtype": "int8", "window": 7},
    "paged float16": {"dtype": np.float16, "page_size": 16},
    "ring bfloat16": {"dtype": ml_dtypes.bfloat16, "window": 16},
    "contiguous float64": {"dtype": np.float64},
}


@dataclass
class Pair:
    """A cache, what it ought to be, and its open draft."""

    cache: KVCache
    layers: list[LayerModel]
    draft: Draft | None = field(default=None)
    branches: list[int] = field(default_factory=list)

    def rows(self, chosen: list[int]) -> list[int]:
        """Of the chosen branches, among all."""
        return [sum(self.branches[:i]) + branch for i, branch in enumerate(chosen)]


class CacheMachine(RuleBasedStateMachine):
    """Several caches, forked from one another, that each go their own way."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        cache = KVCache(LAYERS, 2, KV_HEADS, CAPACITY, HEAD_DIM, v_head_dim=V_HEAD_DIM, **options)
        models = [
            LayerModel([SequenceModel() for _ in range(2)], layer.page_size, options.get("window")) for layer in cache
        ]
        self.dtype = cache[0].dtype
        self.pairs = [Pair(cache, models)]

    # What differs for arrays that are not the host's.

    def put(self, array: Array) -> Any:
        """What is appended, of an array of the host."""
        return array

    def check_layer(self, layer: Layer, model: LayerModel) -> None:
        check_layer(layer, model)

    def check_pages(self, layers: list[Layer]) -> None:
        check_pages(layers)

    def some(self, data: st.DataObject, drafting: bool | None = None) -> Pair:
        # Drawn by number: hypothesis keeps what it drew, and a cache that is dropped must die.
        numbers = [i for i, pair in enumerate(self.pairs) if drafting in (None, pair.draft is not None)]
        return self.pairs[data.draw(st.sampled_from(numbers), "cache")]

    def tokens(self, data: st.DataObject, pair: Pair, layers: int) -> tuple[list[int], list[tuple[Array, Array]]]:
        """How many tokens each sequence gets, and arrays for each layer with NaN where they are padding."""
        batch = pair.cache.batch
        n = data.draw(st.one_of(st.integers(0, 4), st.integers(0, 45)), "n")
        counts = data.draw(st.one_of(st.just([n] * batch), st.lists(st.integers(0, n), min_size=batch, max_size=batch)))
        rng = np.random.default_rng(data.draw(seeds))
        padding = np.arange(n) >= np.array(counts, int)[:, None]
        arrays = []
        for _ in range(layers):
            k, v = (rng.standard_normal((batch, KV_HEADS, n, dim), dtype=np.float32) for dim in (HEAD_DIM, V_HEAD_DIM))
            for x in (k, v):
                x[rng.random(x.shape[:3]) < 0.1] = 0
                x.swapaxes(1, 2)[padding] = np.nan
            arrays.append((k, v))
        return counts, arrays

    def stored(self, counts: list[int], k: Array, v: Array) -> list[list[Token]]:
        return [[as_stored(k[b, :, i], v[b, :, i], self.dtype) for i in range(n)] for b, n in enumerate(counts)]

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        pair = self.some(data)
        counts, arrays = self.tokens(data, pair, LAYERS)
        fits = all(old + n <= CAPACITY for old, n in zip(pair.layers[0].lengths(), counts, strict=True))
        for layer, model, (k, v) in zip(pair.cache, pair.layers, arrays, strict=True):
            lengths = None if counts == [k.shape[2]] * len(counts) else counts
            if fits:
                layer.append(self.put(k), self.put(v), lengths)
                model.append(self.stored(counts, k, v))
            else:
                with pytest.raises(ValueError, match=r"^capacity must be at least"):
                    layer.append(self.put(k), self.put(v), lengths)

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        pair = self.some(data)
        lengths = [data.draw(st.integers(0, n) | st.integers(max(0, n - 40), n)) for n in pair.layers[0].lengths()]
        if pair.draft is not None:
            with pytest.raises(ValueError, match=r"^truncate must not be called while a draft is open"):
                pair.cache.truncate(lengths)
        elif all(model.can_truncate(lengths) for model in pair.layers):
            pair.cache.truncate(lengths)
            for model in pair.layers:
                model.truncate(lengths)
        else:
            with pytest.raises(ValueError, match=r"^n must leave the last"):
                pair.cache.truncate(lengths)

    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        pair = self.some(data)
        batch = pair.cache.batch
        beams = data.draw(st.lists(st.integers(0, batch - 1), max_size=4)) if batch else []
        if pair.draft is not None:
            with pytest.raises(ValueError, match=r"^reorder must not be called while a draft is open"):
                pair.cache.reorder(beams)
            return
        pair.cache.reorder(beams)
        for model in pair.layers:
            model.reorder(beams)

    @precondition(lambda self: len(self.pairs) < 4)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        pair = self.some(data)
        if pair.draft is not None:
            with pytest.raises(ValueError, match=r"^fork must not be called while a draft is open"):
                pair.cache.fork()
            return
        self.pairs.append(Pair(pair.cache.fork(), copy.deepcopy(pair.layers)))

    @precondition(lambda self: len(self.pairs) > 1)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.pairs.remove(self.some(data))

    @rule(data=st.data())
    def begin_draft(self, data: st.DataObject) -> None:
        pair = self.some(data)
        branches = [data.draw(st.integers(1, 3)) for _ in range(pair.cache.batch)]
        draft = pair.cache.draft(branches) if branches and max(branches) > 1 else pair.cache.draft()
        if pair.draft is not None:
            with pytest.raises(ValueError, match=r"^draft must not be called while a draft is open"):
                draft.__enter__()
            return
        pair.draft, pair.branches = draft.__enter__(), branches
        for model in pair.layers:
            model.begin_draft(branches)

    def end_draft(self, pair: Pair, keep: list[int], rows: list[int]) -> None:
        pair.draft = None
        for model in pair.layers:
            model.end_draft(keep, rows)

    @precondition(lambda self: any(pair.draft for pair in self.pairs))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        pair = self.some(data, drafting=True)
        chosen = [data.draw(st.integers(0, n - 1)) for n in pair.branches]
        rows, drafted = pair.rows(chosen), pair.layers[0].drafted()
        keep = [data.draw(st.integers(0, drafted[row])) for row in rows]
        assert pair.draft is not None
        pair.draft.commit(keep, chosen)
        pair.draft.__exit__(None, None, None)
        self.end_draft(pair, keep, rows)

    @precondition(lambda self: any(pair.draft for pair in self.pairs))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        pair = self.some(data, drafting=True)
        assert pair.draft is not None
        pair.draft.__exit__(None, None, None)
        self.end_draft(pair, [0] * len(pair.branches), pair.rows([0] * len(pair.branches)))

    @precondition(lambda self: any(not pair.draft for pair in self.pairs))
    @rule(data=st.data())
    def fail_between_layers(self, data: st.DataObject) -> None:
        """The model raised after its first layer: nothing happened."""
        pair = self.some(data, drafting=False)
        counts, [(k, v)] = self.tokens(data, pair, 1)
        if any(old + n > CAPACITY for old, n in zip(pair.layers[0].lengths(), counts, strict=True)):
            return

        def step() -> None:
            with pair.cache.draft():
                pair.cache[0].append(self.put(k), self.put(v), counts)
                pair.cache[1].append(self.put(k[..., 1:]), self.put(v), counts)

        with pytest.raises(ValueError, match=r"^k must have shape"):
            step()

    @invariant()
    def caches_are_what_they_ought_to_be(self) -> None:
        for pair in self.pairs:
            assert pair.cache.batch == len(pair.layers[0].sequences)
            np.testing.assert_array_equal(pair.cache.lengths, np.array(pair.layers[0].lengths(), int))
            for layer, model in zip(pair.cache, pair.layers, strict=True):
                self.check_layer(layer, model)
        for i in range(LAYERS):
            self.check_pages([pair.cache[i] for pair in self.pairs])


@pytest.mark.parametrize("options", STORAGES.values(), ids=STORAGES)
def test_a_cache_is_a_list_of_tokens(options: dict[str, Any]) -> None:
    steps = settings(stateful_step_count=30)  # a ring wraps several times, and the pages of forks run out
    run_state_machine_as_test(lambda: CacheMachine(options), settings=steps)
