"""Pictures for a terminal: masks, heat maps of attention weights, a progress bar."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

_SHADES = " ·░▒▓█"
_MASK_SHADES = "·░▒▓█"  # none, three parts of some, all
# From dark to light in the 256-colour palette, for weights from 0 to 1.
_COLOURS = (232, 17, 18, 19, 26, 32, 38, 44, 79, 120, 156, 192, 228)
_NARROWEST = 20


def mask_steps(q_len: int, kv_len: int, q_offset: int, width: int) -> tuple[int, int]:
    """How many queries and keys a character stands for, so that a mask fits ``width`` characters.

    One each, if neither side is longer than that; else at most half as many lines as characters, as these are tall.
    """
    margin = max(len(str(q_offset)), len(str(q_offset + q_len - 1)))
    most = max(width, _NARROWEST) - margin - 1
    if max(q_len, kv_len) <= most:
        return 1, 1
    return max(1, -(-q_len // (most // 2))), max(1, -(-kv_len // most))


def mask_picture(shares: npt.NDArray[Any], q_offset: int = 0, rows: int = 1, columns: int = 1) -> str:
    """A mask as text: a line per query, its position in front, ``#`` where it attends.

    Args:
        shares: (lines, characters), the share of its pairs that a character shows, from 0 to 1; bools if it is one.
        rows, columns: queries and keys that a character stands for. Where they are several, it is shaded, and a last
            line explains the shades.
    """
    scaled = rows > 1 or columns > 1
    glyphs = _MASK_SHADES if scaled else ".#"
    kinds = np.where(shares >= 1, len(glyphs) - 1, np.ceil(shares * (len(glyphs) - 2))).astype(int)
    positions = [str(q_offset + i * rows) for i in range(len(shares))]
    margin = max((len(position) for position in positions), default=0)
    lines = [
        f"{position:>{margin}} " + "".join(glyphs[kind] for kind in line)
        for position, line in zip(positions, kinds, strict=True)
    ]
    if scaled:
        queries = "1 query" if rows == 1 else f"{rows} queries"
        keys = "1 key" if columns == 1 else f"{columns} keys"
        lines.append(f"a character is {queries} x {keys}: {glyphs[0]} none seen, {glyphs[1:-1]} some, {glyphs[-1]} all")
    return "\n".join(lines)


def heat_map(
    weights: npt.NDArray[Any], rows: Sequence[str], columns: Sequence[str], *, colour: bool, width: int
) -> str:
    """A (rows, columns) array of weights from 0 to 1 as text; columns that do not fit follow in further blocks.

    Args:
        rows, columns: their labels; those of columns are written downwards.
        colour: ANSI colours, else shades.
        width: of the terminal, in characters.
    """
    margin = max(map(_cells, rows), default=0)
    cell = max((_cells(character) for label in columns for character in label), default=1)
    step = max(1, (max(width, _NARROWEST) - margin - 1) // cell)
    blocks = []
    for start in range(0, max(len(columns), 1), step):
        lines = [" " * (margin + 1) + line for line in _downwards(columns[start : start + step], cell)]
        for label, row in zip(rows, weights[:, start : start + step], strict=True):
            marks = "".join(_cell(float(weight), colour) * cell for weight in row)
            lines.append(" " * (margin - _cells(label)) + f"{label} {marks}")
        blocks.append("\n".join(line.rstrip(" ") for line in lines))
    return "\n\n".join(blocks)


def _downwards(labels: Sequence[str], cell: int) -> list[str]:
    """Labels side by side, a column of ``cell`` characters each, their ends in the last line."""
    tall = max(map(len, labels), default=0)
    columns = [[*" " * (tall - len(label)), *label] for label in labels]
    return ["".join(c + " " * (cell - _cells(c)) for c in line) for line in zip(*columns, strict=True)]


def _cells(text: str) -> int:
    """Places that a text takes in a terminal: two for a Chinese character, and its like."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _cell(weight: float, colour: bool) -> str:
    weight = min(max(weight, 0.0), 1.0)
    if colour:
        return f"\x1b[48;5;{_COLOURS[round(weight * (len(_COLOURS) - 1))]}m \x1b[0m"
    return _SHADES[round(weight * (len(_SHADES) - 1))]


def wants_colour(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal whose user has not asked for plain text (no-color.org)."""
    return stream.isatty() and "NO_COLOR" not in os.environ


class ProgressBar:
    """``[=====     ] 512/2000`` on standard error, redrawn in place; callable as ``bar(done, total)``."""

    def __init__(self, stream: TextIO | None = None, width: int = 30) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._width = width
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        filled = self._width * done // max(total, 1)
        bar = "=" * filled + " " * (self._width - filled)
        self._stream.write(f"\r[{bar}] {done}/{total}")
        self._stream.flush()
        self._drawn = True

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")  # the bar gives its line back
            self._stream.flush()
