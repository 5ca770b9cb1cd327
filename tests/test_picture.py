"""Pictures: what a cell, a character or a pixel says is what the mask says."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from maskattn.masks.picture import save
from maskattn.masks.svg import notebook, svg
from maskattn.masks.view import View
from strategies import expressions, geometries

WINDOW = Causal() & SlidingWindow(left=20)


def view(mask: Mask, q_len: int, kv_len: int, q_offset: Any = None, batch_index: int = 0) -> View:
    return View.of(mask, q_len, kv_len, q_offset, None, batch_index, 0)


# Counting


@given(data=st.data())
def test_cells_count_what_the_mask_shows(data: st.DataObject) -> None:
    g = data.draw(geometries())
    mask = data.draw(expressions(g))
    b, h = (data.draw(st.integers(0, n - 1)) for n in (g.batch, g.heads))
    rows, columns = (data.draw(st.sampled_from([1, 3, 64, 1000])) for _ in range(2))
    looked_at = View.of(mask, g.q_len, g.kv_len, g.q_offset, g.kv_lengths, b, h)
    got = looked_at.counts(rows, columns)
    seen = mask.to_bool(g.q_len, g.kv_len, **g.options())[b, h]
    assert got.shape == (-(-g.q_len // rows), -(-g.kv_len // columns))
    for want, counted in ((seen, got), (np.ones_like(seen), looked_at.areas(rows, columns))):
        if got.size:
            in_rows = np.add.reduceat(want.astype(int), range(0, g.q_len, rows), axis=0)
            np.testing.assert_array_equal(counted, np.add.reduceat(in_rows, range(0, g.kv_len, columns), axis=1))


def test_large_masks_are_counted_without_being_built() -> None:
    n, left = 100_000, 999
    counts = view(Causal() & SlidingWindow(left=left), n, n).counts(10_000, 25_000)
    assert counts.sum() == n * (left + 1) - left * (left + 1) // 2
    assert counts[9].tolist() == [0, 0, 0, 10_000_000]


def test_a_sequence_or_head_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="batch_index must be at least 0 and below 2, got 2"):
        Padding([1, 2]).draw(3, 3, batch_index=2)
    with pytest.raises(ValueError, match="head must be at least 0, got -1"):
        Causal().draw(3, 3, head=-1)
    assert Causal().draw(2, 2, batch_index=7, head=5) == Causal().draw(2, 2)  # the same for any


# Text


def test_small_masks_are_drawn_pair_by_pair() -> None:
    assert Causal().draw(2, 3) == "1 ##.\n2 ###"
    assert Padding([1, 3]).draw(1, 3, batch_index=1) == "2 ###"
    assert Full().draw(1, 4, kv_lengths=[2, 3], batch_index=1) == "2 ###."
    assert Causal().draw(0, 3) == ""
    assert Causal().draw(2, 0, q_offset=0).split() == ["0", "1"]


def test_large_masks_are_shaded() -> None:
    lines = Documents(np.arange(400) // 200).draw(400, 400, width=44).splitlines()
    assert lines[-1] == "a character is 20 queries x 10 keys: · none seen, ░▒▓ some, █ all"
    assert lines[0] == "  0 " + "█" * 20 + "·" * 20
    assert lines[19] == "380 " + "·" * 20 + "█" * 20
    one_pair = Dense(np.arange(400 * 400).reshape(400, 400) == 0).draw(400, 400, width=44).splitlines()
    assert one_pair[0] == "  0 ░" + "·" * 39
    assert (~Dense(np.arange(400 * 400).reshape(400, 400) == 0)).draw(400, 400, width=44)[4:6] == "▓█"


@pytest.mark.parametrize(
    ("q_len", "kv_len", "q_offset"), [(1, 500, None), (500, 1, 0), (300, 77, -200), (79, 80, 5), (4000, 9000, None)]
)
@pytest.mark.parametrize("width", [1, 40, 80])
def test_pictures_fit_the_terminal(q_len: int, kv_len: int, q_offset: int | None, width: int) -> None:
    *lines, last = WINDOW.draw(q_len, kv_len, q_offset=q_offset, width=width).splitlines()
    room = max(width, 20)
    assert max(len(line) for line in lines) <= room
    assert len(lines) <= room
    assert last.startswith("a character is ")


# SVG


def cells_of(picture: str) -> Any:
    """The cells that an SVG fills, read back from its paths."""
    root = ElementTree.fromstring(picture)
    name = "{http://www.w3.org/2000/svg}"
    group = root.find(f"{name}g")
    assert group is not None
    ground = group.find(f"{name}rect")
    assert ground is not None
    filled = np.zeros((int(ground.attrib["height"]), int(ground.attrib["width"])))
    for path in group.findall(f"{name}path"):
        for x, y, width in re.findall(r"M(\d+) (\d+)h(\d+)v1H\d+z", path.attrib["d"]):
            filled[int(y), int(x) : int(x) + int(width)] = float(path.attrib["fill-opacity"])
    return filled


@pytest.mark.parametrize("mask", [WINDOW, Dense(np.eye(30, 40) == 1), ~Full(), Chunked(7)], ids=repr)
def test_svg_shows_each_pair(mask: Mask) -> None:
    np.testing.assert_array_equal(cells_of(svg(view(mask, 30, 40))), mask.to_bool(30, 40)[0, 0])


def test_svg_of_a_large_mask_has_shades() -> None:
    cells = cells_of(svg(view(Causal(), 480, 480)))
    assert cells.shape == (48, 48)
    np.testing.assert_array_equal(cells == 1, np.tri(48, k=-1))
    assert set(np.diag(cells)) == {0.75}


KINDS: list[tuple[Mask, tuple[int, int]]] = [
    (BlockDiffusion(4, 10), (20, 20)),
    (BlockSparse(np.eye(3, 5) == 1, 8), (24, 40)),
    (Causal(), (24, 24)),
    (Chunked(10), (30, 30)),
    (Dense(np.ones((6, 9), np.bool_)), (6, 9)),
    (Dense(np.ones((3, 1, 1, 9), np.bool_)), (24, 9)),
    (Dilated(2, 3), (24, 24)),
    (Documents([0, 0, 1]), (3, 3)),
    (Documents([0, 0, 1], [0, 1]), (3, 2)),
    (FirstTokens(4), (24, 24)),
    (Function(lambda b, h, q, k: q > k) & SlidingWindow(left=999), (256, 256)),
    (GlobalTokens([0, 11]), (33, 33)),
    (KeyPadding(np.ones(5, np.bool_)), (5, 5)),
    (Neighborhood((3, 3), (5, 6)), (30, 30)),
    (Padding([3, 12]), (36, 36)),
    (QueryPadding(np.ones(7, np.bool_)), (7, 7)),
    (Tree([-1, 0, 0]), (24, 24)),
    (Causal() & (SlidingWindow(left=16) | FirstTokens(4)), (48, 48)),
    (Causal() & Documents([1] * 11), (11, 11)),
    (PrefixLM(3) & ~Dense(np.ones((5, 1), np.bool_)), (5, 24)),
]


@pytest.mark.parametrize(("mask", "shape"), KINDS, ids=lambda each: "" if isinstance(each, Mask) else str(each))
def test_notebooks_show_a_geometry_that_suits_the_parameters(mask: Mask, shape: tuple[int, int]) -> None:
    shown = mask._repr_html_()
    picture = shown[shown.index("<svg") : shown.index("<br>")]
    cells = tuple(-(-n // -(-n // 48)) for n in shape)  # one each up to 48
    assert cells_of(picture).shape == cells


def test_notebooks_show_masks_that_fit_no_geometry_by_name() -> None:
    shown = notebook(Documents([1, 2]) & Dense(np.ones((5, 5), np.bool_)))
    assert "<svg" not in shown
    assert "Documents(" in shown


def test_notebooks_escape_names() -> None:
    class Named(Causal):
        def __repr__(self) -> str:
            return "<script>"

    assert "<script>" not in notebook(Named())
    assert notebook(Named()).count("&lt;script&gt;") == 2


# matplotlib


@pytest.fixture
def ax() -> Any:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    from matplotlib.figure import Figure

    return Figure().subplots()


def pixels(ax: Any) -> Any:
    return np.asarray(ax.images[0].get_array())


def test_plot_shows_positions(ax: Any) -> None:
    mask = Causal() & SlidingWindow(left=2)
    assert mask.plot(10, 30, q_offset=7, ax=ax) is ax
    np.testing.assert_array_equal(pixels(ax)[..., 3], mask.to_bool(10, 30, q_offset=7)[0, 0])
    assert ax.get_xlim() == (-0.5, 29.5)
    assert ax.get_ylim() == (16.5, 6.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key position", "query position")
    assert ax.get_title() == repr(mask)


def test_plot_makes_its_own_figure() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs the extra plot")
    pyplot.switch_backend("agg")
    ax = Causal().plot(4, 4)
    assert ax.figure.axes == [ax]
    pyplot.close(ax.figure)


def test_plot_scales_large_masks_down(ax: Any) -> None:
    (Causal() & SlidingWindow(left=99)).plot(2500, 5001, ax=ax)
    assert pixels(ax).shape == (834, 834, 4)
    assert ax.get_xlim() == (-0.5, 5000.5)
    assert ax.get_ylim() == (5000.5, 2500.5)


def test_plot_of_nothing(ax: Any) -> None:
    Causal().plot(0, 5, ax=ax)
    assert not ax.images


def test_tiles(ax: Any) -> None:
    Causal().plot(150, 150, tiles=True, ax=ax)
    partial, full = (mesh.get_array().reshape(3, 3).filled(0) for mesh in ax.collections)
    np.testing.assert_array_equal(partial, np.eye(3))
    np.testing.assert_array_equal(full, np.tri(3, k=-1))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["seen", "full tile", "partial tile"]
    with pytest.raises(ValueError, match="up to 16384 queries and keys, got 1 and 16385"):
        Causal().plot(1, 16385, tiles=True, ax=ax)
    with pytest.raises(ValueError, match="leave out other"):
        Causal().plot(4, 4, tiles=True, other=Full(), ax=ax)


def test_the_difference_of_two_masks_has_four_colours(ax: Any) -> None:
    a, b = Causal(), Padding(3)
    a.plot(6, 6, other=b, ax=ax)
    kinds = 2 * a.to_bool(6, 6)[0, 0] + b.to_bool(6, 6)[0, 0]
    colours = {kind: {tuple(rgb) for rgb in pixels(ax)[kinds == kind].round(6)} for kind in range(4)}
    assert all(len(of_kind) == 1 for of_kind in colours.values())
    assert len(set.union(*colours.values())) == 4
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["only Causal()", "only Padding(lengths=3, side='right')", "both", "neither"]


def test_a_difference_of_one_pair_shows_in_a_large_picture(ax: Any) -> None:
    odd = np.zeros((1, 1, 1, 3000), np.bool_)
    odd[..., 0] = True
    Causal().plot(3000, 3000, other=Causal() & ~(Dense(odd) & SlidingWindow(left=0)), ax=ax)
    different = (pixels(ax) == np.array([0, 0x72, 0xB2]) / 255).all(axis=2)
    assert np.argwhere(different).tolist() == [[0, 0]]


def test_a_picture_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    for name, options in {"plain": {}, "tiles": {"tiles": True}, "other": {"other": Full()}}.items():
        path = tmp_path / f"{name}.png"
        save(view(WINDOW, 100, 100), path, **options)  # type: ignore[arg-type]
        assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("plot needs matplotlib; pip install 'maskattn[plot]'")):
        Causal().plot(3, 3)
