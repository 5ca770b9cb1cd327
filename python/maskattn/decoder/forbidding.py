"""Processors that take tokens away without a look at the scores: a search then needs the scores of few tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from maskattn.decoder.processors import Step

Tokens = Sequence[int] | IntArray


@dataclass(frozen=True)
class Forbid:
    """A processor that takes tokens away, those that ``tokens`` names for each row, and leaves all other scores."""

    tokens: Callable[[Step], Sequence[Tokens]]

    def __call__(self, step: Step, scores: FloatArray) -> FloatArray:
        for row, tokens in zip(scores, self.tokens(step), strict=True):
            row[np.asarray(tokens, np.int64)] = -np.inf
        return scores


@dataclass(frozen=True)
class Force:
    """A processor that leaves some rows, those that ``rows`` names, nothing but ``tokens``."""

    rows: Callable[[Step], BoolArray]
    tokens: tuple[int, ...]

    def __call__(self, step: Step, scores: FloatArray) -> FloatArray:
        rows = self.rows(step)
        scores[rows] = -np.inf
        scores[np.flatnonzero(rows)[:, None], list(self.tokens)] = 0
        return scores
