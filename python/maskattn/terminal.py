"""Pictures for a terminal: masks, heat maps of attention weights, a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

_SHADES = " ·░▒▓█"
# From dark to light in the 256-colour palette, for weights from 0 to 1.
_COLOURS = (232, 17, 18, 19, 26, 32, 38, 44, 79, 120, 156, 192, 228)
_NARROWEST = 20


def mask_picture(seen: npt.NDArray[np.bool_], q_offset: int = 0) -> str:
    """A (q_len, kv_len) bool array as text: a row per query, ``#`` where it attends; its position in front."""
    positions = [str(q_offset + i) for i in range(len(seen))]
    width = max((len(p) for p in positions), default=0)
    rows = ("".join("#" if cell else "." for cell in row) for row in seen)
    return "\n".join(f"{position:>{width}} {row}" for position, row in zip(positions, rows, strict=True))


def heat_map(
    weights: npt.NDArray[Any], rows: Sequence[str], columns: Sequence[str], *, colour: bool, width: int
) -> str:
    """A (rows, columns) array of weights from 0 to 1 as text; columns that do not fit follow in further blocks.

    Args:
        rows, columns: one character or word each; only the first character of a column is shown.
        colour: ANSI colours, else shades.
        width: of the terminal, in characters.
    """
    margin = max((len(label) for label in rows), default=0)
    step = max(width, _NARROWEST) - margin - 1
    blocks = []
    for start in range(0, max(len(columns), 1), step):
        part = columns[start : start + step]
        lines = [" " * (margin + 1) + "".join(label[:1] for label in part)]
        for label, row in zip(rows, weights[:, start : start + step], strict=True):
            lines.append(f"{label:>{margin}} " + "".join(_cell(float(weight), colour) for weight in row))
        blocks.append("\n".join(line.rstrip(" ") for line in lines))
    return "\n\n".join(blocks)


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
