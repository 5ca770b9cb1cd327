"""Drafts: what may come next, in one or several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from maskattn.decoder.arrays import BoolArray, IntArray
from maskattn.decoder.speculation.chances import Chances


@dataclass(frozen=True)
class Drafts:
    """What may come next in each sequence: a tree, as the branches that lead to its leaves (arXiv:2305.09781).

    Attributes:
        tokens: shape (branches, most), int64; branches of a sequence may begin with the same tokens.
        counts: shape (branches,): how many of them are a branch's own, the first ones; 0: an empty draft.
        sequences: shape (branches,), ascending: the sequence that each belongs to. Every sequence has one at least.
        chances: of what each token was drawn from, by branch and place; None: they were not drawn. What branches put
            in one place was drawn from one distribution, without replacement, in the order of the branches.
    """

    tokens: IntArray
    counts: IntArray
    sequences: IntArray
    chances: Sequence[Sequence[Chances]] | None = None

    @classmethod
    def of(cls, trees: Sequence[Sequence[IntArray]], chances: Sequence[Sequence[Chances]] | None = None) -> Drafts:
        """Of the branches of each sequence, best first; a sequence without any has an empty draft."""
        branches = [branch for tree in trees for branch in (tree or [_EMPTY])]
        counts = np.array([len(branch) for branch in branches], np.int64)
        tokens = np.zeros((len(branches), int(counts.max(initial=0))), np.int64)
        for row, branch in zip(tokens, branches, strict=True):
            row[: len(branch)] = branch
        sequences = np.arange(len(trees)).repeat([max(len(tree), 1) for tree in trees])
        return cls(tokens, counts, sequences, chances)

    @cached_property
    def real(self) -> BoolArray:
        """Shape (branches, most): which of ``tokens`` are a branch's own."""
        return np.asarray(np.arange(self.tokens.shape[1]) < self.counts[:, None])

    @cached_property
    def branches(self) -> IntArray:
        """Shape (batch,): how many each sequence has."""
        return np.bincount(self.sequences)

    @cached_property
    def firsts(self) -> IntArray:
        """Shape (batch,): the first branch of each sequence."""
        return np.asarray(self.branches.cumsum() - self.branches)

    @cached_property
    def owners(self) -> IntArray:
        """Shape (branches, 1 + most): of each place the first branch that has the same tokens before it."""
        owners = np.arange(len(self.counts))[:, None].repeat(1 + self.tokens.shape[1], axis=1)
        for i in np.flatnonzero(owners[:, 0] != self.firsts[self.sequences]).tolist():
            first = self.firsts[self.sequences[i]]
            alike = (self.tokens[first:i] == self.tokens[i]) & self.real[first:i] & self.real[i]
            common = np.logical_and.accumulate(alike, axis=1).sum(axis=1)
            nearest = int(common.argmax())
            places = slice(common[nearest] + 1)
            owners[i, places] = owners[first + nearest, places]
        return owners

    @cached_property
    def own(self) -> BoolArray:
        """Shape (branches, 1 + most): which states behind so many tokens are a branch's own; no two are the same."""
        own: BoolArray = self.owners == np.arange(len(self.counts))[:, None]
        own[:, 1:] &= self.real
        return own

    @property
    def sizes(self) -> IntArray:
        """Shape (batch,): how many tokens each tree has, those that branches share once."""
        sizes = np.zeros(len(self.branches), np.int64)
        np.add.at(sizes, self.sequences, self.own[:, 1:].sum(axis=1))
        return sizes

    def without_branches(self) -> Drafts:
        """The first branches alone."""
        counts = self.counts[self.firsts]
        chances = None if self.chances is None else [self.chances[i] for i in self.firsts]
        return Drafts(self.tokens[self.firsts, : counts.max()], counts, np.arange(len(counts)), chances)


_EMPTY = np.zeros(0, np.int64)


class Drafter(Protocol):
    """Where drafts come from."""

    def draft(self, rows: IntArray, most: IntArray) -> Drafts:
        """What may follow the rows of the page that are still being written.

        Args:
            rows: ascending, and never again one that was left out.
            most: shape (len(rows),): the longest drafts that can be used; may be 0.
        """
        ...
