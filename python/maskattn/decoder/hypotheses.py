"""The whole sequences that a beam search has found."""

from __future__ import annotations

from dataclasses import dataclass, field

from maskattn.decoder.arrays import IntArray


@dataclass
class Hypotheses:
    """The best of them, with their scores: sums of log-probabilities over a power of the length.

    Attributes:
        capacity: how many are kept; with so many a search may end.
        length_penalty: the power.
        early_stopping: see ``GenerationOptions``.
        best: (score, token ids), best first.
    """

    capacity: int
    length_penalty: float
    early_stopping: bool | str
    best: list[tuple[float, IntArray]] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether there are as many as it takes, and better ones are not waited for."""
        return self.early_stopping is True and len(self.best) == self.capacity

    def score(self, total: float, length: int) -> float:
        return float(total) / float(length**self.length_penalty)

    def add(self, total: float, ids: IntArray) -> None:
        self.best.append((self.score(total, len(ids)), ids))
        self.best = sorted(self.best, key=lambda pair: -pair[0])[: self.capacity]

    def improvable(self, total: float, length: int, limit: int) -> bool:
        """Whether a sequence that has come to ``total`` after ``length`` tokens may become one of the best.

        As in ``transformers``, it is guessed by its present length, which is exact for a penalty of 0 only; with
        early_stopping "never", by the length up to ``limit`` that suits it best.
        """
        if len(self.best) < self.capacity:
            return True
        longest = limit if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self.score(total, longest) > self.best[-1][0]
