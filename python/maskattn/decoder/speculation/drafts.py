"""Drafts, and where the cheapest ones come from: what the sequence has said before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.speculation.chances import Chances
from maskattn.decoder.speculation.page import Page


@dataclass(frozen=True)
class Drafts:
    """What may come next in each sequence.

    Attributes:
        tokens: shape (batch, most), int64.
        counts: shape (batch,): how many of them are a sequence's own, the first ones; 0: it has no draft.
        chances: of what each token was drawn from, by sequence and place; None: they were not drawn.
    """

    tokens: IntArray
    counts: IntArray
    chances: Sequence[Sequence[Chances]] | None = None

    @classmethod
    def of(cls, lists: Sequence[IntArray]) -> Drafts:
        counts = np.array([len(some) for some in lists], np.int64)
        tokens = np.zeros((len(lists), int(counts.max())), np.int64)
        for row, some in zip(tokens, lists, strict=True):
            row[: len(some)] = some
        return cls(tokens, counts)

    def drawn_from(self, sequence: int, place: int) -> Chances | None:
        return None if self.chances is None or place >= self.counts[sequence] else self.chances[sequence][place]


class Drafter(Protocol):
    """Where drafts come from."""

    def draft(self, rows: IntArray, most: IntArray) -> Drafts:
        """What may follow the rows of the page that are still being written.

        Args:
            rows: ascending, and never again one that was left out.
            most: shape (len(rows),): the longest drafts that can be used; may be 0.
        """
        ...


@dataclass(frozen=True)
class PromptLookup:
    """Drafts what has followed the last few tokens before, in the sequence or in what its encoder read.

    Of the longest n-gram that is found the latest place that a whole draft follows, else the one with most behind it.
    """

    page: Page
    tokens: int
    ngram: int

    def draft(self, rows: IntArray, most: IntArray) -> Drafts:
        sources = self.page.batch.sources
        found = []
        for row, room in zip(rows.tolist(), most.tolist(), strict=True):
            own = self.page.own(row)
            wanted = min(self.tokens, room)
            draft = own[:0]
            for size in range(min(self.ngram, len(own)) if wanted > 0 else 0, 0, -1):
                draft = follows(own, own[len(own) - size :], wanted)
                if not draft.size and sources is not None:
                    draft = follows(sources[row], own[len(own) - size :], wanted)
                if draft.size:
                    break
            found.append(draft)
        return Drafts.of(found)


def follows(text: IntArray, ngram: IntArray, most: int) -> IntArray:
    """Up to ``most`` tokens that stand behind ``ngram`` in ``text``; none if it is not there, or at the end only."""
    if len(text) <= len(ngram):
        return text[:0]
    windows = np.lib.stride_tricks.sliding_window_view(text[:-1], len(ngram))
    places = np.flatnonzero((windows == ngram).all(axis=1)) + len(ngram)
    if not places.size:
        return text[:0]
    whole = places[places + most <= len(text)]
    place = int(whole[-1] if whole.size else places[0])
    return text[place : place + most]
