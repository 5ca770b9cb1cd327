"""What has been written of a batch whose sequences come forward at different rates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.generate import Batch
from maskattn.decoder.processors import NO_TOKEN, Step
from maskattn.decoder.rules import Rules


class Page:
    """A row per sequence; prompts end in the same column, so that what the rules look back on does too.

    Attributes:
        tokens: shape (batch, columns), int64. What stands at or behind a row's end are drafts.
        begin: the column of the first new tokens.
        ends: shape (batch,): the column behind each sequence's last token.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.begin = max(map(len, batch.prompts))
        self._limits = np.array(batch.limits)
        self.tokens: IntArray = np.full((len(self._limits), self.begin + int(self._limits.max())), NO_TOKEN, np.int64)
        for row, prompt in zip(self.tokens, batch.prompts, strict=True):
            row[self.begin - len(prompt) : self.begin] = prompt
        self.ends: IntArray = np.full(len(self._limits), self.begin)

    def own(self, row: int) -> IntArray:
        """The tokens of one sequence, its prompt among them."""
        return self.tokens[row, self.begin - len(self.batch.prompts[row]) : self.ends[row]]

    def new(self, row: int) -> list[int]:
        """The tokens written behind the prompt."""
        written: list[int] = self.tokens[row, self.begin : self.ends[row]].tolist()
        return written

    def room(self, rows: IntArray) -> IntArray:
        """How many tokens each of ``rows`` may still get."""
        left: IntArray = self.begin + self._limits[rows] - self.ends[rows]
        return left

    def write(self, rows: IntArray, tokens: IntArray) -> None:
        self.tokens[rows, self.ends[rows]] = tokens
        self.ends[rows] += 1

    def steps(self, rows: IntArray, columns: IntArray) -> Iterator[tuple[IntArray, Step]]:
        """Those of ``rows`` that have come equally far, as rules look at them: (which of ``rows``, what they see).

        Args:
            columns: shape (len(rows),): of the tokens that each waits for.
        """
        for column in np.unique(columns).tolist():
            some = np.flatnonzero(columns == column)
            group = rows[some]
            sources = None if self.batch.sources is None else [self.batch.sources[i] for i in group]
            last = self._limits[group] == column - self.begin + 1
            numbers = np.array(self.batch.numbers)[group]
            yield some, Step(self.tokens[group, :column], self.begin, last, numbers, sources)

    def process(self, rules: Rules, rows: IntArray, columns: IntArray, scores: FloatArray) -> FloatArray:
        """``scores`` (len(rows), vocab) of the tokens in ``columns``, as the rules want them; changed in place."""
        if rules.processors:
            for some, step in self.steps(rows, columns):
                scores[some] = rules.process(step, scores[some])
        return scores
