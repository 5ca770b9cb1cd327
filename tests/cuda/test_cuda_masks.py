"""Masks on a device: programs against the core's rows, plans of kernels against the host's, arrays against arrays."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, back, lent, on_device
from hypothesis import given, settings
from hypothesis import strategies as st

from maskattn import _core, cuda, masks
from maskattn.cuda import plans
from maskattn.cuda.module import compiled, load
from maskattn.cuda.places import PER_THREAD_STREAM, Place, named_place
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
    return load().words_on_host(*flat[:2], g.batch, g.heads, g.q_len, g.kv_len, *positions, 0)


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
    np.testing.assert_array_equal(back(materialised(got)), host.to_bits(g.q_len, g.kv_len, **g.options()))
    tiles = want.tiles(64, 64)
    tiles[..., -1:][tiles[..., -1:] == 2] = 2 if g.kv_len % 64 == 0 else 1  # full: all 64 keys, that exist
    np.testing.assert_array_equal(np.broadcast_to(got.tiles(), tiles.shape), tiles)
    return got


@settings(max_examples=60)
@given(st.data())
def test_plans_are_those_of_the_host(data: st.DataObject) -> None:
    g = data.draw(geometries())
    check_plan(data.draw(expressions(g)), g)


@pytest.mark.parametrize("q_len", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("kv_len", [1, 64, 130, 2048, 2049, 16448])
def test_plans_of_many_keys(q_len: int, kv_len: int) -> None:
    """More words than a warp has lanes, more tiles than a block lists at a time, in spans and in bits."""
    g = Geometry(q_len, kv_len)
    assert check_plan(Causal() & SlidingWindow(left=100) | masks.FirstTokens(3), g).spans_per_row == 2
    assert check_plan(~SlidingWindow(40, 2100), g).spans_per_row == 2
    every_third = masks.KeyPadding(np.arange(kv_len) % 3 == 0)
    assert check_plan(every_third & Causal(), g).spans_per_row == (0 if kv_len > 12 else 1)


def test_sequences_and_heads_that_agree_are_stored_once() -> None:
    place = named_place("cuda")
    for mask, stored in (
        (Causal(), (1, 1)),
        (masks.Padding([3, 60]), (2, 1)),
        (Dense(np.ones((1, 4, 1, 70), np.bool_)), (1, 4)),
    ):
        plan = plan_of(place, mask, 5, 70, 2, 4, None, None)
        assert plan.tiles().shape == (*stored, 1, 2)
    assert plan_of(place, Causal(), 5, 70, 2, 4, None, [70, 7]).tiles().shape[0] == 2


@pytest.mark.parametrize("per_head", [True, False])
def test_functions_are_asked_on_the_host(per_head: bool) -> None:
    mask = Function(lambda b, h, q, k: (q + 2 * k + per_head * h) % 5 < 3, per_sequence=False, per_head=per_head)
    plan = check_plan(mask & Causal(), Geometry(70, 130, 2, 3))
    assert plan.tiles().shape[:2] == (1, 3 if per_head else 1)
    assert plan.spans_per_row == 0
    sliced = (mask & Causal()).plan(70, 130)[66:]
    got = back(materialised(plan_of(named_place("cuda"), sliced, 4, 130, 1, 1, None, None)))
    np.testing.assert_array_equal(got, (mask & Causal()).to_bits(70, 130)[:, : 1 + 2 * per_head, 66:][:, :1])


def materialised(plan: Any) -> Any:
    place = named_place("cuda")
    out = compiled.empty((plan.batch, plan.heads, plan.q_len, (plan.kv_len + 7) // 8), "uint8", place.stream)
    compiled.bits_from_plan(plan, out)
    return out


def test_a_plan_of_the_host_and_its_slices(rng: np.random.Generator) -> None:
    keep = rng.random((90, 130)) < 0.5
    for mask in (Causal() & SlidingWindow(left=30), Dense(keep) & Causal()):
        plan = mask.plan(90, 130)
        for part in (plan, plan[70:], plan[3:5][1:]):
            got = plan_of(named_place("cuda"), part, part.q_len, 130, 1, 1, None, None)
            first = part.row_base
            want = mask.to_bits(90, 130)[:, :, first : first + part.q_len]
            np.testing.assert_array_equal(back(materialised(got)), want)


@settings(max_examples=30)
@given(st.data())
def test_bool_arrays_of_the_device_are_masks(data: st.DataObject) -> None:
    g = data.draw(geometries())
    mask = LEAVES[Dense](data.draw, g)
    assert isinstance(mask, Dense)
    where = g.q_len, g.kv_len, g.batch, g.heads, g.q_offset, g.kv_lengths
    plan = plan_of(named_place("cuda"), lent(mask.keep), *where)
    np.testing.assert_array_equal(back(materialised(plan)), mask.to_bits(*where[:2], **g.options()))


def test_bool_arrays_of_any_strides(rng: np.random.Generator) -> None:
    wide = rng.random((130, 70, 3, 2)) < 0.5
    plan = plan_of(named_place("cuda"), lent(wide.T), 70, 130, 2, 3, None, [130, 66])
    np.testing.assert_array_equal(back(materialised(plan)), Dense(wide.T).to_bits(70, 130, kv_lengths=[130, 66]))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_positions_that_the_device_has(dtype: Any) -> None:
    """Lengths past the end are cut, and offsets follow from lengths where there are none."""
    place, mask = named_place("cuda"), Causal() & masks.Padding(50)
    lengths, offsets = np.array([130, 7, 0], dtype), np.array([3, 60, -2], dtype)
    for q_offset, kv_lengths in ((None, lengths), (offsets, lengths), (offsets, None), (offsets[:1], lengths)):
        want = mask.to_bits(20, 130, batch=3, q_offset=q_offset, kv_lengths=kv_lengths)
        given = (None if each is None else lent(each) for each in (q_offset, kv_lengths))
        got = plan_of(place, mask, 20, 130, 3, 1, *given)
        np.testing.assert_array_equal(back(materialised(got)), want)
    got = plan_of(place, mask, 20, 130, 3, 1, None, lent(np.array([1000, 7, -5], dtype)))
    np.testing.assert_array_equal(back(materialised(got)), mask.to_bits(20, 130, batch=3, kv_lengths=lengths))


# Arrays


@settings(max_examples=25)
@given(st.data())
def test_arrays_are_those_of_the_host(data: st.DataObject) -> None:
    g = data.draw(geometries())
    mask, where = data.draw(expressions(g)), g.options()
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]))
    for make, options in (
        (mask.to_bool, {}),
        (mask.to_ignore, {}),
        (mask.to_additive, {"dtype": dtype}),
        (mask.to_bits, {}),
    ):
        want = make(g.q_len, g.kv_len, **options, **where)
        got = make(g.q_len, g.kv_len, **options, **where, device="cuda")
        assert isinstance(got, cuda.Array)
        assert (got.shape, got.dtype) == (want.shape, want.dtype.name)
        assert back(got).tobytes() == want.tobytes()


@pytest.mark.parametrize("kv_len", [2048, 2064, 4099])
def test_arrays_of_many_keys(kv_len: int) -> None:
    """Rows of whole 16 bytes and others, more keys than a warp writes at a time."""
    for make in (SlidingWindow(5, 2100).to_bool, SlidingWindow(5, 2100).to_additive, SlidingWindow(5, 2100).to_bits):
        assert back(make(3, kv_len, q_offset=7, device="cuda")).tobytes() == make(3, kv_len, q_offset=7).tobytes()


def test_out_may_be_an_array_of_the_device() -> None:
    for library in (lent, lambda array: Interface(on_device(array))):
        out: Any = library(np.zeros((1, 1, 5, 70), np.bool_))
        assert Causal().to_bool(5, 70, out=out) is out
        np.testing.assert_array_equal(back(out), Causal().to_bool(5, 70))
        with pytest.raises(TypeError, match=r"^out must be a float32 array, got bool"):
            Causal().to_additive(5, 70, out=out)
        with pytest.raises(ValueError, match=r"^out must be .* of shape \(1, 1, 5, 9\), got shape \(1, 1, 5, 3\)"):
            Causal().to_bits(5, 70, out=library(np.zeros((1, 1, 5, 3), np.uint8)))


def test_plans_and_programs_are_kept_with_the_mask() -> None:
    place, mask = named_place("cuda"), Causal() & Documents(np.arange(200) // 9)
    first = plan_of(place, mask, 20, 130, 2, 1, None, None)
    assert plan_of(place, mask, 20, 130, 2, 1, None, None) is first
    others = [plan_of(place, mask, q_len, 130, 2, 1, None, None) for q_len in range(1, 6)]
    assert plan_of(place, mask, 5, 130, 2, 1, None, None) is others[-1]
    assert plan_of(place, mask, 20, 130, 2, 1, None, None) is not first
    assert len(plans._kept[mask.expr].programs) == 1
    gone = weakref.ref(mask.expr)
    del mask
    gc.collect()
    assert gone() is None


def test_nothing_that_is_kept_goes_into_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    place, mask = named_place("cuda"), Causal() & Documents(np.arange(200) // 9)

    def planned(place: Place) -> Any:
        return plan_of(place, mask, 20, 130, 2, 1, None, None)

    first = planned(place)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "is_capturing", lambda stream: True)
        assert len({id(plan) for plan in [first, planned(place), planned(place)]}) == 3
    assert planned(place) is first
    own = replace(place, stream=PER_THREAD_STREAM)  # of other threads it is another
    assert planned(own) is not planned(own)
    assert len(plans._kept[mask.expr].plans) == len(plans._kept[mask.expr].programs) == 1


def test_a_plan_is_of_one_device() -> None:
    with pytest.raises(ValueError, match=r"^mask must be planned on cuda:1, got a plan on cuda:0"):
        plan_of(replace(named_place("cuda:0"), device=1), cuda.plan(Causal(), 5, 70), 5, 70, 1, 1, None, None)


@pytest.mark.parametrize(
    ("mask", "where", "error", "message"),
    [
        (masks.KeyPadding(np.ones(5, np.bool_)), {}, ValueError, "^KeyPadding must cover the call's 70 keys, got 5"),
        (Causal(), {"kv_lengths": 71}, ValueError, "^kv_lengths must be from 0 to kv_len = 70, got 71"),
        (Causal(), {"kv_lengths": "on the device"}, ValueError, r"^kv_lengths must be one integer or have shape"),
        (Function(lambda b, h, q, k: q == k), {"q_offset": "on the device"}, ValueError, "^q_offset .* on the host"),
        (Causal(), {"device": "cuda:7"}, RuntimeError, "^device must be one of the .*got 'cuda:7'"),
        (Causal(), {"device": "gpu"}, ValueError, "^device must be .*got 'gpu'"),
        (Causal(), {"device": 0}, TypeError, "^device must be .*got int"),
    ],
)
def test_what_cannot_be_planned(mask: Mask, where: Any, error: type[Exception], message: str) -> None:
    extents = (3,) if "kv_lengths" in where else (1,)
    where = {
        name: lent(np.zeros(extents, np.int32)) if value == "on the device" else value for name, value in where.items()
    }
    with pytest.raises(error, match=message):
        cuda.plan(mask, 5, 70, **{"device": "cuda"} | where)
