"""The sentence that says why a pair is seen or hidden: it agrees with the definition, and names the right terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from maskattn.masks import (
    BlockDiffusion,
    BlockSparse,
    Causal,
    Chunked,
    Dense,
    Dilated,
    Documents,
    FirstTokens,
    Full,
    Function,
    GlobalTokens,
    KeyPadding,
    Mask,
    Neighborhood,
    Padding,
    PrefixLM,
    QueryPadding,
    SlidingWindow,
    Tree,
)

WINDOW = SlidingWindow(left=4)


@pytest.mark.parametrize(
    ("mask", "pair", "want"),
    [
        (Causal() & SlidingWindow(left=128) & Padding(500), (131, 0),
         "hidden by SlidingWindow(left=128): distance 131; Causal allows; Padding(lengths=500) allows"),
        (Causal() & WINDOW, (5, 3), "seen: Causal allows and SlidingWindow(left=4) allows"),
        (Causal() & Full() & Padding(3), (5, 6),
         "hidden by Causal: distance 1 ahead, and by Padding(lengths=3): key 6, length 3; Full allows"),
        (WINDOW | FirstTokens(2), (9, 1), "seen: FirstTokens(n=2) allows; SlidingWindow(left=4) hides"),
        (WINDOW | FirstTokens(2), (9, 2),
         "hidden by SlidingWindow(left=4): distance 7, and by FirstTokens(n=2): key 2"),
        (~Causal(), (3, 4), "seen: ~Causal allows (Causal hides, turned around)"),
        (~Causal(), (4, 3), "hidden by ~Causal: Causal allows, turned around, distance 1"),
        (~~Causal(), (4, 3), "seen: Causal allows"),
        # ~(a & b) hides where both allow, and shows where one hides.
        (~(Causal() & WINDOW), (5, 3),
         "hidden by ~Causal: Causal allows, turned around, distance 2, "
         "and by ~SlidingWindow(left=4): SlidingWindow(left=4) allows, turned around, distance 2"),
        (~(Causal() & WINDOW), (9, 3),
         "seen: ~SlidingWindow(left=4) allows (SlidingWindow(left=4) hides, turned around); "
         "~Causal hides (Causal allows, turned around)"),
        (~Causal() & ~Causal(), (4, 3), "hidden by ~Causal: Causal allows, turned around, distance 1"),
    ],
)  # fmt: skip
def test_sentences(mask: Mask, pair: tuple[int, int], want: str) -> None:
    assert mask.explain(0, 0, *pair) == want


HIDDEN: list[tuple[Mask, tuple[int, int], str]] = [
    (BlockDiffusion(2), (1, 2), "BlockDiffusion(size=2): query in block 0, key in block 1"),
    (BlockDiffusion(2, 4), (1, 5), "query in noisy block 0, key in clean block 0"),
    (BlockDiffusion(2, 4), (9, 5), "query in no block, key in clean block 0"),
    (BlockSparse(np.array([[True, False]]), 3), (2, 3), "BlockSparse(size=3): block (0, 1)"),
    (Causal(), (3, 7), "Causal: distance 4 ahead"),
    (Chunked(4), (3, 4), "query in chunk 0, key in chunk 1"),
    (Dense(np.array([[True, False]])), (5, 1), "Dense: row 2, key 1"),
    (Dilated(1, 2), (4, 3), "Dilated(window=1, stride=2): distance 1"),
    (Documents([7, 9]), (1, 0), "Documents: query in document 9, key in document 7"),
    (FirstTokens(1), (4, 3), "FirstTokens(n=1): key 3"),
    (~Full(), (4, 3), "~Full: Full allows, turned around"),
    (Function(lambda b, h, q, k: q == k), (4, 3), "Function: <lambda>(0, 0, 4, 3)"),
    (GlobalTokens([5]), (4, 3), "neither query 4 nor key 3 global"),
    (~GlobalTokens([4]), (4, 3), "query 4 global"),
    (KeyPadding(np.array([True, False])), (0, 1), "KeyPadding: key 1 is padding"),
    (Neighborhood(3, 9), (4, 8), "Neighborhood(kernel=3, shape=9): distance 4 ahead"),
    (Neighborhood((3, 3), (4, 5)), (4, 10), "query at (0, 4), key at (2, 0)"),
    (Padding(3), (4, 3), "Padding(lengths=3): key 3, length 3"),
    (Padding(3, side="left"), (4, 3), "Padding(lengths=3, side='left'): key 3, length 3 of 12"),
    (PrefixLM(3), (4, 5), "PrefixLM(lengths=3): key 5, prefix 3, distance 1 ahead"),
    (QueryPadding(np.array([True, False])), (1, 0), "QueryPadding: query 1 is padding"),
    (SlidingWindow(right=2), (4, 7), "SlidingWindow(right=2): distance 3 ahead"),
    (Tree([-1, 0, 0]), (11, 10), "Tree(parents=(-1, 0, 0)): query node 2, key node 1"),
]


@pytest.mark.parametrize(("mask", "pair", "said"), HIDDEN, ids=lambda each: "" if isinstance(each, Mask) else str(each))
def test_each_kind_says_what_its_answer_hangs_on(mask: Mask, pair: tuple[int, int], said: str) -> None:
    offset = 3 if isinstance(mask, Dense) else 0
    sentence = mask.explain(0, 0, *pair, q_offset=offset, kv_length=12)
    assert sentence.startswith("hidden by ")
    assert sentence.endswith(said)


@pytest.mark.parametrize("mask", [mask for mask, _, _ in HIDDEN], ids=lambda mask: type(mask).__name__)
def test_each_kind_agrees_with_its_definition(mask: Mask) -> None:
    q_len, kv_len = (1, 2) if isinstance(mask, (Dense, Documents, KeyPadding, QueryPadding)) else (12, 12)
    for offset in (0, 1):
        for query, key in np.ndindex(q_len, kv_len):
            at, call = (offset + query, key), {"q_offset": offset, "kv_length": 12}
            assert mask.explain(0, 0, *at, **call).startswith("seen: ") == mask.allows(0, 0, *at, **call)


def test_one_parameter_per_sequence() -> None:
    mask = Padding([1, 3])
    assert mask.explain(0, 0, 0, 2) == "hidden by Padding(lengths=(1, 3)): key 2, length 1"
    assert mask.explain(1, 0, 0, 2).startswith("seen: ")
    assert Documents([5, 5]).explain(3, 2, -1, 0, q_offset=-1).endswith("query in no document, key in document 5")


def test_long_parameters_are_left_out() -> None:
    assert Padding(tuple(range(100))).explain(3, 0, 0, 7) == "hidden by Padding: key 7, length 3"


def test_keys_that_do_not_exist() -> None:
    for mask in (Full(), ~Full()):
        sentence = mask.explain(0, 0, 15, 12, kv_length=10)
        assert sentence == "does not exist: key 12 is at or past kv_length 10"


def test_a_mask_of_ones_own_says_its_detail() -> None:
    @dataclass(frozen=True)
    class Even(Mask):
        def allows(self, b, h, q_pos, kv_pos, *, q_offset=0, kv_length=None):  # type: ignore[no-untyped-def]
            return np.equal(np.mod(kv_pos, 2), 0) & np.ones(np.shape(q_pos), np.bool_)

        def _lower(self):  # type: ignore[no-untyped-def]
            return Full().expr

        def detail(self, b: int, h: int, q_pos: int, kv_pos: int) -> str:
            return f"key {kv_pos} is odd"

    assert Even().explain(0, 0, 4, 3) == "hidden by Even: key 3 is odd"
    assert Even().explain(0, 0, 4, 2) == "seen: Even allows"


@pytest.mark.parametrize(
    ("mask", "at", "message"),
    [
        (Causal(), (0, 0, 3, -1), "kv_pos must be at least 0, got -1"),
        (Causal(), (0, 0, -1, 0), "q_pos must be at least q_offset=0"),
        (Causal(), (-1, 0, 0, 0), "b must be at least 0, got -1"),
        (Padding([1, 2]), (2, 0, 0, 0), "b must be at least 0 and below 2, got 2"),
        (Documents([1, 2]), (0, 0, 0, 5), "Documents does not reach query 0 and key 5"),
    ],
)
def test_positions_that_are_not_there(mask: Mask, at: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask.explain(*at)
