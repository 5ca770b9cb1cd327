"""A group of beams of one source, and what becomes of it with each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.ends import Ends
from maskattn.decoder.hypotheses import Hypotheses
from maskattn.decoder.sampling import draw_several

#: On the score of what must not go on, as in ``transformers``.
_OUT = np.float32(1e9)


def first_scores(beams: int) -> FloatArray:
    """Of beams that have no token yet: all are the same, so one counts."""
    return np.where(np.arange(beams) == 0, 0, -_OUT).astype(np.float32)


class Continuations(NamedTuple):
    """Beams with one more token, shape (n,) each: the beams, ``ids`` (n, new) and sums of log-probabilities."""

    beams: IntArray
    ids: IntArray
    scores: FloatArray

    def take(self, which: IntArray) -> Continuations:
        return Continuations(self.beams[which], self.ids[which], self.scores[which])

    def followed_by(self, other: Continuations) -> Continuations:
        beams, ids = np.concatenate([self.beams, other.beams]), np.concatenate([self.ids, other.ids])
        return Continuations(beams, ids, np.concatenate([self.scores, other.scores]))


@dataclass
class Group:
    """Beams that compete: all of a source, unless it has several groups.

    Attributes:
        row: of the batch.
        rank: which of the source's groups it is.
        limit: the most new tokens.
        running: shape (beams, new), tokens of what goes on, and ``scores`` (beams,), sums of log-probabilities.
        done: whole sequences.
        improvable: whether a running beam may become better than the worst of these.
    """

    row: int
    rank: int
    limit: int
    running: IntArray
    scores: FloatArray
    done: Hypotheses
    improvable: bool = True

    def advance(
        self,
        log_probs: FloatArray,
        keep: int,
        ended: Ends,
        stream: np.random.Generator | None,
        tokens: IntArray | None = None,
    ) -> IntArray | None:
        """Take a token in, by the rules of ``transformers`` since 4.50.

        Args:
            log_probs: shape (beams, vocab), processed; or of ``tokens`` alone.
            keep: how many continuations are looked at: enough that as many as beams go on.
            ended: which continuations are whole.
            stream: of what they are drawn; None: they are the most probable ones.
            tokens: shape (beams, n), the most probable ones of each beam, best first; None: all of the vocabulary.

        Returns:
            The beams that the new ones continue, shape (beams,); None if the group is done.
        """
        beams = len(log_probs)
        found = self._continuations(log_probs + self.scores[:, None], keep, stream, tokens)
        new = found.ids.shape[1]
        whole = ended(self, found.ids) | (new >= self.limit)
        if self.improvable and not self.done.settled:
            for i in np.flatnonzero(whole[:beams]):
                self.done.add(found.scores[i], found.ids[i])
        on = np.lexsort((-found.scores, whole))[:beams]  # those that go on, best first
        self.running, self.scores = found.ids[on], found.scores[on] - _OUT * whole[on]
        self.improvable &= self.done.improvable(self.scores[0], new, self.limit)
        may_go_on = self.improvable and not self.done.settled and not whole.all()
        return found.beams[on] if may_go_on else None

    def best(self) -> tuple[float, IntArray]:
        """The sequence that is ahead, with its score: what would be returned if all ended here."""
        running = self.done.score(self.scores[0], max(self.running.shape[1], 1))
        return max([*self.done.best[:1], (running, self.running[0])], key=lambda pair: pair[0])

    def _continuations(
        self, totals: FloatArray, keep: int, stream: np.random.Generator | None, tokens: IntArray | None = None
    ) -> Continuations:
        """The best by ``totals`` (beams, vocab), or (beams, n) of ``tokens``; or drawn ones, in their order."""
        flat = totals.reshape(-1)
        if stream is None:
            best = np.argpartition(-flat, keep - 1)[:keep]
            best = best[np.argsort(-flat[best], kind="stable")]
        else:
            best = draw_several(flat, keep, stream)
        beams, places = np.divmod(best, totals.shape[1])
        last = places if tokens is None else tokens[beams, places]
        return Continuations(beams, np.concatenate([self.running[beams], last[:, None]], axis=1), flat[best])


@dataclass
class OlderGroup(Group):
    """By the rules of ``transformers`` before 4.50, which its diverse and constrained beam search keep.

    They differ where a group ends: what goes on at the limit comes after what ended there, and whether it could still
    become better is asked of the best continuation, whole or not.
    """

    def advance(
        self,
        log_probs: FloatArray,
        keep: int,
        ended: Ends,
        stream: np.random.Generator | None,
        tokens: IntArray | None = None,
    ) -> IntArray | None:
        """As :meth:`Group.advance`."""
        beams = len(log_probs)
        totals = log_probs + self.scores[:, None]
        found = self._continuations(totals, keep, stream, tokens)
        new = found.ids.shape[1]
        whole = ended(self, found.ids)
        self._end(found, np.flatnonzero(whole[:beams]))
        on = np.argsort(whole, kind="stable")[:beams]
        going = found.take(on)
        going = going._replace(scores=np.where(whole[on], going.scores - _OUT, going.scores))
        going = self._select(going, totals, keep, ended)
        if not self.done.settled and new >= self.limit:
            self._end(going, np.flatnonzero(going.scores > -_OUT / 2))
        self._move(going)
        may_go_on = not self.done.settled and self.done.improvable(found.scores[0], new, self.limit)
        return going.beams if may_go_on and new < self.limit else None

    def _end(self, found: Continuations, which: IntArray) -> None:
        """These are whole."""
        for i in which:
            self.done.add(found.scores[i], found.ids[i])

    def _move(self, going: Continuations) -> None:
        self.running, self.scores = going.ids, going.scores

    def _select(self, going: Continuations, totals: FloatArray, keep: int, ended: Ends) -> Continuations:
        """Of ``going`` and of others, as many as go on; the others are as in :meth:`advance`."""
        return going
