"""The cheapest drafts: what the sequence has said before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.speculation.drafts import Drafts
from maskattn.decoder.speculation.page import Page


@dataclass(frozen=True)
class PromptLookup:
    """Drafts what has followed the last few tokens before, in the sequence or in what its encoder read.

    Of the longest n-gram that is found the latest place that a whole draft follows, else the one with most behind it;
    then the other places, and those of shorter n-grams, each time that they say something else.

    Attributes:
        tokens: the most per draft.
        ngram: the longest n-gram that is looked for.
        branches: the most drafts of a sequence.
    """

    page: Page
    tokens: int
    ngram: int
    branches: int = 1

    def draft(self, rows: IntArray, most: IntArray) -> Drafts:
        """As ``Drafter`` says."""
        return Drafts.of([self._tree(*pair) for pair in zip(rows.tolist(), most.tolist(), strict=True)])

    def _tree(self, row: int, room: int) -> list[IntArray]:
        own, wanted, tree = self.page.own(row), min(self.tokens, room), list[IntArray]()
        sources = self.page.batch.sources
        for size in range(min(self.ngram, len(own)) if wanted > 0 else 0, 0, -1):
            for text in (own,) if sources is None else (own, sources[row]):
                for found in follows(text, own[len(own) - size :], wanted):
                    if not any(np.array_equal(found, branch[: len(found)]) for branch in tree):
                        tree.append(found)
                    if len(tree) == self.branches:
                        return tree
        return tree


def follows(text: IntArray, ngram: IntArray, most: int) -> Iterator[IntArray]:
    """Up to ``most`` tokens that stand behind ``ngram`` in ``text``, of each place where some do, the best one first.

    The latest places come first; but last, and the other way round, those that the text's end cuts short.
    """
    if len(text) <= len(ngram):
        return
    windows = np.lib.stride_tricks.sliding_window_view(text[:-1], len(ngram))
    places = np.flatnonzero((windows == ngram).all(axis=1)) + len(ngram)
    whole = places + most <= len(text)
    for place in (*places[whole][::-1].tolist(), *places[~whole].tolist()):
        yield text[place : place + most]
