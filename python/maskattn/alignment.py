"""Pictures of which source tokens each target token was written from: for a terminal, and by matplotlib."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn import terminal

_LONGEST = 16  # characters of a label; what is longer is cut
_PITCH = 0.17  # inches that a label takes, and a row or column of a figure that is ours to size
_SIDES = 3.0, 20.0  # inches of such a figure, least and most
_UNKNOWN = "\N{WHITE SQUARE}"  # for a character that no font has


def draw_alignment(
    weights: npt.NDArray[Any],
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    *,
    width: int | None = None,
    colour: bool | None = None,
) -> str:
    """A picture of characters: a line per target token, a column per source token, its name downwards above it.

    Args:
        weights: shape (target, source), or with axes in front (layers, heads) over which the mean is taken; in [0, 1].
        source_tokens, target_tokens: their names. One that can't be written downwards (right to left, combining
            characters) is given a number, which lines below explain.
        width: in characters; default the terminal's. Columns that do not fit follow in further blocks.
        colour: ANSI colours instead of shades; default: if standard output is a terminal that wants them.

    Raises:
        TypeError, ValueError: the shapes do not agree, or ``weights`` are no finite floats.
    """
    table = _mean(weights, source_tokens, target_tokens)
    notes: dict[str, str] = {}
    columns, rows = ([_name(token, notes) for token in tokens] for tokens in (source_tokens, target_tokens))
    picture = terminal.heat_map(
        table,
        rows,
        columns,
        colour=terminal.wants_colour(sys.stdout) if colour is None else colour,
        width=shutil.get_terminal_size().columns if width is None else width,
    )
    return "\n".join([picture, *(f"{name} = {token}" for token, name in notes.items())])


def plot_alignment(
    weights: npt.NDArray[Any], source_tokens: Sequence[str], target_tokens: Sequence[str], to: Any = None
) -> Any:
    """A heat map by matplotlib (the extra ``plot``), source tokens along the top, target tokens down the side.

    Characters that matplotlib's font lacks are taken from another installed font, or shown as a square.

    Args:
        weights, source_tokens, target_tokens: as in :func:`draw_alignment`. Where there are more than fit, only every
            second, third, ... token is named.
        to: the path of a PNG file to write, which needs no display; or the axes to draw in. Default: a new figure.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: as :func:`draw_alignment`.
        ModuleNotFoundError: without matplotlib.
    """
    table = _mean(weights, source_tokens, target_tokens)
    figure, ax = None, to
    if to is None or isinstance(to, str | os.PathLike):
        size = [min(max(1.5 + _PITCH * n, _SIDES[0]), _SIDES[1]) for n in table.shape[::-1]]
        make = _matplotlib("pyplot").figure if to is None else _matplotlib("figure").Figure
        figure = make(figsize=size, layout="constrained")
        ax = figure.subplots()
    image = ax.imshow(table, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    for axis, tokens, inches in ((ax.xaxis, source_tokens, box.width), (ax.yaxis, target_tokens, box.height)):
        step = max(1, -(-len(tokens) // max(1, int(inches / _PITCH + 0.5))))
        _label(axis, range(0, len(tokens), step), [_cut(token) for token in tokens[::step]])
    ax.xaxis.tick_top()
    if any(len(token) > 1 for token in source_tokens):
        ax.tick_params(axis="x", rotation=90)
    if figure is not None:
        figure.colorbar(image, ax=ax, shrink=min(1.0, 3 / figure.get_figheight()))
        if to is not None:
            figure.savefig(to, format="png", dpi=150)
    return ax


def _mean(weights: npt.NDArray[Any], source: Sequence[str], target: Sequence[str]) -> npt.NDArray[Any]:
    """(target, source), over all axes in front of these."""
    for name, tokens in (("source_tokens", source), ("target_tokens", target)):
        if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
            raise TypeError(f"{name} must be a list of str, got {tokens!r:.40}")
    if not isinstance(weights, np.ndarray) or weights.dtype.kind != "f":
        raise TypeError(f"weights must be an array of floats, got {type(weights).__name__}; pass cross_attention(...)")
    wanted = len(target), len(source)
    if weights.ndim < 2 or weights.shape[-2:] != wanted or 0 in weights.shape:
        raise ValueError(
            f"weights must have shape (..., {wanted[0]}, {wanted[1]}), target and source tokens, got {weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise ValueError("weights must be finite, got NaN or infinity")
    table: npt.NDArray[Any] = weights.reshape(-1, *wanted).mean(axis=0)
    return table


def _cut(token: str) -> str:
    """On one line, and not too long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _name(token: str, notes: dict[str, str]) -> str:
    """What stands for a token in a terminal: itself, or a number that gets a note."""
    shown = _cut(token)
    if all(unicodedata.category(c)[0] != "M" and unicodedata.bidirectional(c) not in ("R", "AL", "AN") for c in shown):
        return shown
    return notes.setdefault(shown, f"[{len(notes) + 1}]")


# matplotlib


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot_alignment needs matplotlib; pip install 'maskattn[plot]'") from error


def _label(axis: Any, places: Sequence[int], names: Sequence[str]) -> None:
    """Names at an axis as they are: neither $ nor \\ means anything, and no font is asked for what it lacks."""
    families, missing = _fonts({character for name in names for character in name})
    shown = ["".join(_UNKNOWN if character in missing else character for character in name) for name in names]
    axis.set_ticks(places, shown, fontfamily=families, fontsize="small", parse_math=False, usetex=False)


def _fonts(characters: set[str]) -> tuple[list[str], set[str]]:
    """Families that have the characters, matplotlib's own choice first; and the characters that none has."""
    fonts = _matplotlib("font_manager")
    default = fonts.FontProperties()
    families, missing = list(default.get_family()), characters - _characters(fonts.findfont(default))
    for font in fonts.fontManager.ttflist:
        if not missing:
            break
        # The first draws every character as a box, the second's are pictures, which matplotlib can't draw.
        if not any(word in font.name for word in ("Last Resort", "Emoji")) and missing & _characters(font.fname):
            missing -= _characters(font.fname)
            families.append(font.name)
    return families, missing


def _characters(path: str) -> set[str]:
    try:
        return {chr(code) for code in _matplotlib("font_manager").get_font(path).get_charmap()}
    except (OSError, RuntimeError):  # a file that FreeType can't read
        return set()
