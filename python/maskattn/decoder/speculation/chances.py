"""Rejection sampling: tokens that were drawn from one distribution become draws from another (arXiv:2211.17192)."""

from __future__ import annotations

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


def accept_or_draw(token: int, drafted: Chances, wanted: Chances, stream: np.random.Generator) -> int:
    """A draw from ``wanted``, which is ``token`` as often as can be.

    Args:
        token: drawn from ``drafted``.
        stream: gives one number, or two.
    """
    one = np.array([token])
    if stream.random() * drafted.at(one)[0] < wanted.at(one)[0]:
        return token
    left = np.maximum(wanted.probabilities - drafted.at(wanted.ids), 0)
    if not left.any():  # Equal but for rounding.
        left = wanted.probabilities
    mass = np.cumsum(left)
    place = int(np.searchsorted(mass, stream.random() * mass[-1], "right"))
    return int(wanted.ids[min(place, len(mass) - 1)])
