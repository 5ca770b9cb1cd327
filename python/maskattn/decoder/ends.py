"""What rules look at while sequences are written that do not stand in one array, and which of them are whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from maskattn.decoder.arrays import BoolArray, IntArray
from maskattn.decoder.generate import Batch
from maskattn.decoder.processors import NO_TOKEN, Step
from maskattn.decoder.rules import Rules


class BatchMember(Protocol):
    """What is written for a sequence of a batch; ``row`` says which."""

    @property
    def row(self) -> int: ...


class Ends:
    """Which continuations are whole: they end with an end token, or are stopped."""

    def __init__(self, batch: Batch, rules: Rules) -> None:
        self._batch, self._rules, self._begin = batch, rules, max(map(len, batch.prompts))
        # Prompts end in the same column, so that what the rules look back on does too.
        self._prompts = [
            np.concatenate([np.full(self._begin - len(prompt), NO_TOKEN), prompt]) for prompt in batch.prompts
        ]

    def __call__(self, of: BatchMember, candidates: IntArray) -> BoolArray:
        """Shape (n,): which of the new tokens (n, new) are."""
        ended = np.isin(candidates[:, -1], self._rules.eos_token_id)
        if self._rules.stop is not None or self._rules.criteria:
            step = self.step([of], candidates)
            ended = ended | self._rules.stopped(step, np.zeros((len(candidates), 1), np.float32))
        return ended

    def step(self, of: Sequence[BatchMember], written: IntArray, rivals: Sequence[IntArray] | None = None) -> Step:
        """What rules look at: ``written`` behind the prompts, as many rows for each.

        Args:
            rivals: see :class:`Step`, one for each.
        """
        each = len(written) // len(of)
        rows = np.repeat([one.row for one in of], each)
        prompts = np.stack([self._prompts[row] for row in rows])
        last = np.array([self._batch.limits[row] == written.shape[1] + 1 for row in rows])
        read = None if self._batch.sources is None else [self._batch.sources[row] for row in rows]
        tokens, numbers = np.concatenate([prompts, written], axis=1), np.array(self._batch.numbers)[rows]
        others = None if rivals is None else [taken for taken in rivals for _ in range(each)]
        return Step(tokens, self._begin, last, numbers, read, others)
