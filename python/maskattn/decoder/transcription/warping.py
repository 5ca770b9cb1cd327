"""Which frames each token was heard in, from cross-attention weights: dynamic time warping (arXiv:2212.04356, 4.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import IntArray

Array = npt.NDArray[np.floating[Any]]


def first_frames(weights: Array, filter_width: int) -> IntArray:
    """The frame at which each token begins, on the path through all tokens and frames that is attended to most.

    Each head's weights are normalised over the tokens, frame by frame, and freed of single peaks by a median filter.

    Args:
        weights: shape (heads, tokens, frames), at least one of each.
        filter_width: of the median filter, in frames; odd.

    Returns:
        shape (tokens,): from 0, never decreasing.
    """
    total = np.zeros(weights.shape[1:])
    for head in weights:  # one after the other: all of them in float64, times the filter's width, would be large
        spread = head.std(axis=0, dtype=np.float64)
        normal = (head - head.mean(axis=0, dtype=np.float64)) / np.where(spread > 0, spread, 1)
        total += median_filter(normal, filter_width)
    return warp(-total)


def median_filter(values: Array, width: int) -> Array:
    """The median of the ``width`` neighbours of each value along the last axis, mirrored at its ends.

    An axis that is too short to be mirrored is left as it is, as in ``transformers``.
    """
    half = width // 2
    if values.shape[-1] <= half:
        return values
    mirrored = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, width, axis=-1)
    median: Array = np.partition(windows, half, axis=-1)[..., half]
    return median


def warp(costs: Array) -> IntArray:
    """The column at which the cheapest path enters each row.

    The path leads from the first row and column to the last ones and goes to the next column, the next row, or both; to
    the next column also where the other two ways cost the same, which the median filter brings about: so do
    openai-whisper and ``transformers``.

    The cells of an anti-diagonal do not need each other, so that it takes rows + columns steps on vectors of ``rows``
    numbers; for 448 tokens and 1,500 frames, the most that Whisper has, some 20 ms.

    Args:
        costs: shape (rows, columns), finite; at least one of each.

    Returns:
        shape (rows,).
    """
    rows, columns = costs.shape
    count = rows + columns - 1
    # Padded and read with one number less a row, row ``i`` stands ``i`` further to the right: diagonals are columns.
    padded = np.pad(costs.astype(np.float64), ((0, 0), (0, rows)), constant_values=np.inf)
    diagonals = np.ascontiguousarray(padded.ravel()[: rows * count].reshape(rows, count).T)
    # Totals of the two diagonals before, behind a row that no path comes from, but for the first cell.
    older, newer = np.full((2, rows + 1), np.inf)
    older[0] = 0
    back = np.empty((count, rows), np.int8)  # diagonals to the cell before: 1 in the row above, 2 left of that; 0: left
    for diagonal, steps in zip(diagonals, back, strict=True):
        left, above, both = newer[1:], newer[:-1], older[:-1]
        from_above = np.minimum(above, both)
        enters = (from_above < left) & (above != both)
        np.copyto(steps, np.where(enters, 1 + (both < above), 0))
        older[1:] = diagonal + np.where(enters, from_above, left)
        older[0] = np.inf
        older, newer = newer, older
    entered, row, at = np.zeros(rows, np.int64), rows - 1, count - 1
    while row > 0:
        if step := int(back[at, row]):
            entered[row] = at - row
            row, at = row - 1, at - step
        else:
            at -= 1
    return entered
