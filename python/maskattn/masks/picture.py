"""Pictures of masks: text for a terminal, and by matplotlib (the extra ``plot``)."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any

import numpy as np

from maskattn import terminal
from maskattn.masks.base import Mask
from maskattn.masks.view import Shares, View

_TILE = 64
_MOST_TILES = 256  # a side; more of them would be a blur
_MOST_CELLS = 1000  # a side of a plot
# Okabe and Ito's colours, which people with any colour vision tell apart; their lightness differs too.
SEEN, HIDDEN, _BOTH = "#0072B2", "#F0F0F0", "#7F7F7F"
_ONLY_FIRST, _ONLY_SECOND = "#0072B2", "#E69F00"
_FULL_TILE, _PARTIAL_TILE = "#003A5C", "#F7D9A8"


def draw(view: View, width: int | None = None) -> str:
    """See :meth:`maskattn.masks.Mask.draw`."""
    return draw_and_count(view, width)[0]


def draw_and_count(view: View, width: int | None = None) -> tuple[str, int]:
    """The mask as text, and how many pairs it shows."""
    width = shutil.get_terminal_size().columns if width is None else width
    rows, columns = terminal.mask_steps(view.plan.q_len, view.plan.kv_len, view.q_offset, width)
    counts = view.counts(rows, columns)
    shares = counts / view.areas(rows, columns)
    return terminal.mask_picture(shares, view.q_offset, rows, columns), int(counts.sum())


# Colours


def rgb(colour: str) -> Shares:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def strength(share: Shares) -> Shares:
    """How strongly a cell is coloured: a single pair in a large cell must not vanish."""
    return np.where(share > 0, 0.25 + 0.75 * share, 0.0)


def _image(view: View, rows: int, columns: int) -> Shares:
    """Colours and opacities (lines, columns, 4): the tiles shine through where pairs are hidden."""
    opacity = strength(view.shares(rows, columns))[..., None]
    return np.concatenate([np.broadcast_to(rgb(SEEN), (*opacity.shape[:2], 3)), opacity], axis=2)


def _difference(view: View, other: Mask, rows: int, columns: int) -> Shares:
    """Colours (lines, columns, 3); a cell that holds any difference shows the difference alone."""
    terms = (view.mask & ~other, other & ~view.mask, view.mask & other)
    first, second, both = (view.same_place(mask).shares(rows, columns)[..., None] for mask in terms)
    same = rgb(HIDDEN) + strength(both) * (rgb(_BOTH) - rgb(HIDDEN))
    differ = first + second
    part = np.divide(first, differ, out=np.zeros_like(first), where=differ > 0)
    return np.where(differ > 0, part * rgb(_ONLY_FIRST) + (1 - part) * rgb(_ONLY_SECOND), same)


# matplotlib


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot needs matplotlib; pip install 'maskattn[plot]'") from error


def plot(view: View, other: Mask | None = None, *, tiles: bool = False, ax: Any = None) -> Any:
    """See :meth:`maskattn.masks.Mask.plot`."""
    if tiles and other is not None:
        raise ValueError("tiles are those of one mask; leave out other")
    if ax is None:
        ax = _matplotlib("pyplot").subplots(layout="constrained")[1]
    q_len, kv_len, top = view.plan.q_len, view.plan.kv_len, view.q_offset
    rows, columns = (max(1, -(-extent // _MOST_CELLS)) for extent in (q_len, kv_len))
    if q_len and kv_len:
        image = _image(view, rows, columns) if other is None else _difference(view, other, rows, columns)
        aspect = "equal" if max(q_len, kv_len) <= 4 * min(q_len, kv_len) else "auto"
        # The last cell may stand for fewer pairs than the others; what sticks out is cut off.
        extent = (-0.5, image.shape[1] * columns - 0.5, top + image.shape[0] * rows - 0.5, top - 0.5)
        ax.imshow(image, extent=extent, aspect=aspect)
        if tiles:
            _draw_tiles(ax, view)
        ax.set(xlim=(-0.5, kv_len - 0.5), ylim=(top + q_len - 0.5, top - 0.5), facecolor=HIDDEN)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(_matplotlib("ticker").MaxNLocator(8, integer=True))
    ax.set(xlabel="key position", ylabel="query position")
    if other is None:
        ax.set_title(short(view.mask, 70), fontsize="medium")
        _legend(ax, [("seen", SEEN), ("full tile", _FULL_TILE), ("partial tile", _PARTIAL_TILE)] if tiles else [])
    else:
        names = [f"only {short(mask, 60)}" for mask in (view.mask, other)]
        _legend(ax, list(zip([*names, "both", "neither"], (_ONLY_FIRST, _ONLY_SECOND, _BOTH, HIDDEN), strict=True)))
    return ax


def _legend(ax: Any, entries: list[tuple[str, str]]) -> None:
    if not entries:
        return
    patch = _matplotlib("patches").Patch
    handles = [patch(facecolor=colour, edgecolor="#999999", label=name) for name, colour in entries]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "frameon": False}
    ax.legend(handles=handles, ncols=3 if len(handles) == 3 else 2, fontsize="small", **below)


def _draw_tiles(ax: Any, view: View) -> None:
    """Partial tiles under the mask, where its hidden pairs show them; full ones over it."""
    q_len, kv_len, most = view.plan.q_len, view.plan.kv_len, _MOST_TILES * _TILE
    if max(q_len, kv_len) > most:
        raise ValueError(f"tiles can be drawn of up to {most} queries and keys, got {q_len} and {kv_len}")
    kinds = view.plan.tiles(_TILE, _TILE)[view.b, view.h]
    x, y = (
        np.minimum(np.arange(n + 1) * _TILE, end) - 0.5 for n, end in zip(kinds.T.shape, (kv_len, q_len), strict=True)
    )
    edges = {"edgecolors": "white", "linewidth": 0.5} if max(kinds.shape) <= 64 else {}
    for kind, colour, order in ((1, _PARTIAL_TILE, -1), (2, _FULL_TILE, 1)):
        one_colour = _matplotlib("colors").ListedColormap([colour])
        tiles = np.ma.masked_array(kinds == kind, kinds != kind)
        ax.pcolormesh(x, y + view.q_offset, tiles, cmap=one_colour, vmin=0, vmax=1, zorder=order, **edges)


def save(
    view: View, path: str | os.PathLike[str], other: Mask | None = None, *, tiles: bool = False, dpi: int = 200
) -> None:
    """Write a PNG; needs no display."""
    figure = _matplotlib("figure").Figure(figsize=(6, 6))
    plot(view, other, tiles=tiles, ax=figure.subplots())
    figure.savefig(path, format="png", dpi=dpi, bbox_inches="tight")


def short(mask: Mask, most: int) -> str:
    """The mask's repr on one line, cut to ``most`` characters."""
    text = " ".join(repr(mask).split())
    return text if len(text) <= most else text[: most - 3] + "..."
