"""Constrained beam search: beams that have come equally far with what they must write compete (arXiv:1804.06609)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.ends import Ends
from maskattn.decoder.group import Continuations, OlderGroup
from maskattn.decoder.options import Options
from maskattn.decoder.phrases import Constraint, ConstraintState, DisjunctiveConstraint, PhrasalConstraint


def read_constraints(options: Options) -> tuple[Constraint, ...]:
    """Those of ``force_words_ids`` and of ``constraints``.

    Raises:
        TypeError, ValueError: one of them is not as GenerationOptions says.
    """
    made: list[Constraint] = []
    for constraint in options.items("constraints", "a list of maskattn.PhrasalConstraint or DisjunctiveConstraint"):
        if not isinstance(constraint, PhrasalConstraint | DisjunctiveConstraint):
            raise options.wrong("constraints", "PhrasalConstraint or DisjunctiveConstraint", TypeError)
        for phrase in constraint.phrases:
            options.token_ids("constraints", phrase)
        made.append(constraint)
    for words in options.items("force_words_ids", "lists of token ids, or lists of them"):
        if not isinstance(words, Sequence | np.ndarray) or len(words) == 0:
            raise options.wrong("force_words_ids", "lists of token ids, or lists of them, none empty")
        if isinstance(words[0], Sequence | np.ndarray):
            phrases = [options.token_ids("force_words_ids", phrase) for phrase in words]
            if not all(phrases):
                raise options.wrong("force_words_ids", "lists of token ids, or lists of them, none empty")
            made.append(DisjunctiveConstraint(phrases))
        else:
            made.append(PhrasalConstraint(options.token_ids("force_words_ids", words)))
    return tuple(made)


@dataclass
class ConstrainedGroup(OlderGroup):
    """Every beam is also offered the tokens that bring it further, and the banks take turns at the places.

    Attributes:
        progress: of each beam, in its new tokens.
    """

    progress: list[ConstraintState] = field(default_factory=list)

    def _end(self, found: Continuations, which: IntArray) -> None:
        super()._end(found, np.array([i for i in which if self._after(found, i).complete], np.int64))

    def _select(self, going: Continuations, totals: FloatArray, keep: int, ended: Ends) -> Continuations:
        beams, offered = len(going.beams), self._with_further(going, totals)
        banks = np.array([self._after(offered, i).bank for i in range(len(offered.beams))])
        places = _by_turns(banks, offered.scores)[:beams]
        chosen = offered.take(places)
        if self.done.best or self._in_time(chosen).size:
            return chosen
        # All would come too late, since a beam that has written everything was left behind by more probable ones.
        others = self._of_complete(totals, keep, ended)
        every = offered if others is None else offered.followed_by(others)
        timely = self._in_time(every)
        if not timely.size:
            return chosen
        last = timely[every.scores[timely].argmax()]
        return every.take(np.append(places[:-1], last))

    def _move(self, going: Continuations) -> None:
        self.progress = [self._after(going, i) for i in range(len(going.beams))]
        super()._move(going)

    def _after(self, found: Continuations, i: int) -> ConstraintState:
        return self.progress[int(found.beams[i])].add(int(found.ids[i, -1]))

    def _in_time(self, found: Continuations) -> IntArray:
        """Those that can still write everything."""
        room = self.limit - found.ids.shape[1]
        return np.array([i for i in range(len(found.beams)) if self._after(found, i).missing <= room], np.int64)

    def _of_complete(self, totals: FloatArray, keep: int, ended: Ends) -> Continuations | None:
        """Of beams that have written everything, the best continuation that does not end."""
        complete = [beam for beam, progress in enumerate(self.progress) if progress.complete]
        if not complete:
            return None
        only = np.full_like(totals, -np.inf)
        only[complete] = totals[complete]
        found = self._continuations(only, keep, None)
        going = np.flatnonzero(~ended(self, found.ids) & (found.scores > -np.inf))
        return found.take(going[:1]) if going.size else None

    def _with_further(self, going: Continuations, totals: FloatArray) -> Continuations:
        """``going``, and of every beam those continuations that bring it further."""
        seen = {ids.tobytes() for ids in going.ids}
        beams, ids, scores = list(going.beams), list(going.ids), list(going.scores)
        for beam, progress in enumerate(self.progress):
            for token in progress.tokens():
                further = np.append(self.running[beam], token)
                if totals[beam, token] > -np.inf and further.tobytes() not in seen:
                    seen.add(further.tobytes())
                    beams.append(beam)
                    ids.append(further)
                    scores.append(totals[beam, token])
        return Continuations(np.array(beams), np.stack(ids), np.array(scores))


def _by_turns(banks: IntArray, scores: FloatArray) -> IntArray:
    """Indices: the best of each bank, from the highest bank down, then the second best of each, and so on."""
    order = np.lexsort((-scores, -banks))
    place = [int((banks[order[:i]] == banks[best]).sum()) for i, best in enumerate(order)]
    turns: IntArray = order[np.argsort(place, kind="stable")]
    return turns
