"""Masks on a device: programs against the core's rows, plans made by kernels against the host's, arrays against arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_arrays import lent
from maskattn import _core, masks
from maskattn.cuda.module import load
from maskattn.cuda.places import named_place
from maskattn.cuda.plans import plan_of
from maskattn.masks import Causal, Dense, Documents, Function, Mask, SlidingWindow
from strategies import LEAVES, Geometry, expressions, geometries

KINDS = [kind for kind in LEAVES if kind is not Function]


def words_of(bits: Any) -> Any:
    """Packed bytes of rows as words of 64 keys."""
    padded = np.zeros((*bits.shape[:-1], -(-bits.shape[-1] // 8) * 8), np.uint8)
    padded[..., : bits.shape[-1]] = bits
    return padded.view(np.uint64)


def on_host(mask: Mask, g: Geometry) -> Any:
    """What the device's functions say of every row, run by the host; None where there is no program."""
    flat = _core.mask_program(mask.expr)
    if flat is None:
        return None
    plan = mask.plan(g.q_len, g.kv_len, **g.options())
    positions = (np.broadcast_to(np.asarray(p, np.int64), (g.batch,)).copy() for p in (plan.q_offset, plan.kv_lengths))
    return load("x").words_on_host(*flat[:2], g.batch, g.heads, g.q_len, g.kv_len, *positions, 0)


def check_words(mask: Mask, g: Geometry) -> None:
    want = words_of(mask.to_bits(g.q_len, g.kv_len, **g.options()))
    np.testing.assert_array_equal(on_host(mask, g), want)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_program_of_every_kind_says_what_the_core_says(kind: Any) -> None:
    @settings(max_examples=60)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        g = data.draw(geometries())
        if g.far() and kind in (masks.BlockSparse, masks.QueryPadding, masks.Documents):
            g = Geometry(g.q_len, g.kv_len, g.batch, g.heads)
        mask = LEAVES[kind](data.draw, g)
        check_words(mask, g)
        check_words(~mask, g)

    check()


def has_program(mask: Mask) -> bool:
    return _core.mask_program(mask.expr) is not None


@settings(max_examples=150)
@given(st.data())
def test_the_program_of_an_expression_says_what_the_core_says(data: st.DataObject) -> None:
    g = data.draw(geometries())
    mask = data.draw(expressions(g))
    if has_program(mask):
        check_words(mask, g)


def check_plan(mask: Any, g: Geometry) -> Any:
    """A plan that kernels have made has the rows and tiles of the host's."""
    place = named_place("cuda")
    got = plan_of(place, mask, g.q_len, g.kv_len, g.batch, g.heads, g.q_offset, g.kv_lengths)
    host = mask if isinstance(mask, Mask) else Dense(mask)
    want = host.plan(g.q_len, g.kv_len, **g.options())
    bits = place.cuda.empty((g.batch, g.heads, g.q_len, (g.kv_len + 7) // 8), "uint8", place.stream)
    place.cuda.bits_from_plan(got, bits)
    from device_arrays import back

    np.testing.assert_array_equal(back(bits), host.to_bits(g.q_len, g.kv_len, **g.options()))
    tiles = want.tiles(64, 64)
    tiles[..., -1:][tiles[..., -1:] == 2] = 2 if g.kv_len % 64 == 0 else 1  # full: all 64 keys, that exist
    np.testing.assert_array_equal(np.broadcast_to(got.tiles(), tiles.shape), tiles)
    return got


@settings(max_examples=60)
@given(st.data())
def test_plans_are_those_of_the_host(data: st.DataObject) -> None:
    g = data.draw(geometries())
    check_plan(data.draw(expressions(g)), g)
