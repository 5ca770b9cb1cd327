"""A head that knows few tokens, for who knows beforehand which ones a text is made of."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np

from maskattn._core import PackedWeight
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.heads import LanguageHead
from maskattn.decoder.model import Transformer
from maskattn.decoder.projection import Linear


@dataclass(frozen=True, eq=False)
class ShortHead(LanguageHead):
    """A head whose map has the rows of ``tokens``, ascending; others of the ``vocab`` have scores of -inf."""

    tokens: IntArray
    vocab: int

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """As of any head."""
        short = super().__call__(hidden)
        scores = np.full((*short.shape[:-1], self.vocab), -np.inf, np.float32)
        scores[..., self.tokens] = short
        return scores

    def best(self, hidden: FloatArray) -> IntArray:
        """As of any head."""
        best: IntArray = super().best(hidden)
        return best if self.softcap else self.tokens[best]

    def most_probable(self, hidden: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """As of any head; where it knows fewer than ``count`` tokens, the others are any one, at -inf."""
        if self.softcap:
            return super().most_probable(hidden, count)
        known = min(count, len(self.tokens))
        log_probabilities, places = super().most_probable(hidden, known)
        rest = ((0, 0), (0, count - known))
        return (
            np.pad(log_probabilities, rest, constant_values=-np.inf),
            np.pad(self.tokens[places], rest, constant_values=int(self.tokens[0])),
        )


def with_shortlist(model: Transformer, tokens: IntArray) -> Transformer:
    """The same model, which scores ``tokens`` alone: the rows of a packed head are copied as they are.

    Args:
        tokens: ids, in any order.
    """
    head = model.head
    assert head is not None
    ids = np.unique(tokens)
    weight, bias = head.map.weight, None if head.map.bias is None else head.map.bias[ids]
    assert isinstance(weight, PackedWeight)
    short = copy(model)
    short.head = ShortHead(Linear(weight.take(ids), bias), head.scale, head.softcap, head.tied, ids, model.vocab)
    return short
