"""Rejection sampling: tokens that were drawn from one distribution become draws from another (arXiv:2211.17192)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.sampling import softmax

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chances:
    """A distribution over the tokens that can be drawn: ``ids`` ascending, and their ``probabilities``, float64."""

    ids: IntArray
    probabilities: Probabilities

    @classmethod
    def of(cls, scores: FloatArray) -> Chances:
        """Of processed scores (vocab,), of which -inf can't be drawn: what ``sampling.draw`` draws from."""
        ids = np.flatnonzero(scores > -np.inf)
        weights = softmax(scores[ids]).astype(np.float64)
        return cls(ids, weights / weights.sum())

    def at(self, tokens: IntArray) -> Probabilities:
        """Of each of ``tokens``; 0 where one can't be drawn."""
        places = np.minimum(np.searchsorted(self.ids, tokens), len(self.ids) - 1)
        return np.where(self.ids[places] == tokens, self.probabilities[places], 0.0)


def accept_or_draw(tokens: Sequence[int], drafted: Chances, wanted: Chances, stream: np.random.Generator) -> int:
    """A draw from ``wanted``, which is one of ``tokens`` as often as rejection sampling makes it.

    One after the other they are accepted, or what they would have brought is taken off the distribution that is wanted
    (recursive rejection sampling, arXiv:2402.14160, algorithm 3).

    Args:
        tokens: drawn from ``drafted``, one after the other without replacement; at least one.
        stream: gives a number per token that is looked at, and one more where none is accepted.
    """
    proposed, left = drafted.at(wanted.ids), wanted.probabilities.copy()
    remaining = 1.0  # of what is proposed, once earlier tokens are taken out
    for token in tokens:
        place = int(np.searchsorted(wanted.ids, token))
        known = place < len(left) and wanted.ids[place] == token
        chance = float(drafted.at(np.array([token]))[0]) / remaining
        if stream.random() * chance < (left[place] / left.sum() if known else 0.0):
            return token
        rest = np.maximum(left / left.sum() - proposed / remaining, 0)
        if rest.any():  # Else they are equal but for rounding.
            left = rest
        remaining *= 1 - chance
        if known:
            proposed[place] = 0
        if remaining <= 0:
            break
    mass = np.cumsum(left)
    place = int(np.searchsorted(mass, stream.random() * mass[-1], "right"))
    return int(wanted.ids[min(place, len(mass) - 1)])
