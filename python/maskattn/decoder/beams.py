"""Beam search: of all continuations of a source's beams the most probable go on, or drawn ones."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.constrained_beams import ConstrainedGroup, read_constraints
from maskattn.decoder.ends import Ends
from maskattn.decoder.generate import Batch, Generated, check_open, result
from maskattn.decoder.group import Group, OlderGroup, first_scores
from maskattn.decoder.hypotheses import Hypotheses
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.phrases import Constraint, ConstraintState
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import log_softmax
from maskattn.decoder.score import log_probabilities


@dataclass(frozen=True)
class BeamRules:
    """The options of beam search.

    Attributes:
        beams: ``num_beams``; groups: ``num_beam_groups``, which divides it.
        returned: ``num_return_sequences``.
        capacity: how many whole sequences a group collects.
        length_penalty, early_stopping: see :class:`Hypotheses`.
        constraints: what must be written.
    """

    beams: int
    groups: int
    returned: int
    capacity: int
    length_penalty: float
    early_stopping: bool | str
    constraints: tuple[Constraint, ...]

    @classmethod
    def read(cls, options: Options) -> BeamRules | None:
        """None for a search without beams.

        Raises:
            TypeError, ValueError: an option is not as GenerationOptions says.
        """
        beams, returned = options.integer("num_beams", 1) or 1, options.integer("num_return_sequences", 1) or 1
        groups, constraints = options.integer("num_beam_groups", 1) or 1, read_constraints(options)
        penalty = options.number("length_penalty", "a finite number", lambda x: True)
        patience = options.number("patience", "a number above 0", lambda x: x > 0)
        early = options.get("early_stopping")
        if not isinstance(early, bool | str | None) or early not in (None, True, False, "never"):
            raise options.wrong("early_stopping", 'True, False or "never"')
        if constraints and (beams == 1 or groups > 1 or options.flag("do_sample")):
            raise ValueError(
                "constraints and force_words_ids must come with num_beams above 1, one group of beams and no sampling, "
                f"got num_beams={beams}, num_beam_groups={groups}, do_sample={options.flag('do_sample')}; "
                "pass num_beams=4"
            )
        if groups > 1:
            if beams % groups:
                raise options.wrong("num_beam_groups", f"a divisor of num_beams, {beams}")
            if options.flag("do_sample"):
                raise ValueError("do_sample must be False with num_beam_groups above 1, got True; draw without groups")
            if not options.get("diversity_penalty"):
                raise options.wrong("diversity_penalty", "above 0 with num_beam_groups, or the groups are the same")
        if beams == 1:
            return None
        capacity = max(1, round(beams // groups * (patience or 1)))
        if returned > beams or returned > capacity * groups:
            most = f"num_beams, {beams}" if returned > beams else f"{capacity * groups} with this patience"
            raise options.wrong("num_return_sequences", f"at most {most}")
        return cls(beams, groups, returned, capacity, 1.0 if penalty is None else penalty, early or False, constraints)

    def start(self, row: int, rank: int, limit: int) -> Group:
        """A group of beams of the source in a row of the batch."""
        done = Hypotheses(self.capacity, self.length_penalty, self.early_stopping)
        each = self.beams // self.groups
        begin = row, rank, limit, np.zeros((each, 0), np.int64), first_scores(each), done
        if self.constraints:
            return ConstrainedGroup(*begin, progress=[ConstraintState.start(self.constraints)] * each)
        return OlderGroup(*begin) if self.groups > 1 else Group(*begin)


def search(
    model: Transformer, batch: Batch, rules: Rules, beam_rules: BeamRules, *, with_log_probabilities: bool = False
) -> list[list[Generated]]:
    """What :func:`search_steps` returns."""
    return result(search_steps(model, batch, rules, beam_rules, with_log_probabilities=with_log_probabilities))


def search_steps(
    model: Transformer, batch: Batch, rules: Rules, beam_rules: BeamRules, *, with_log_probabilities: bool = False
) -> Generator[list[Group], None, list[list[Generated]]]:
    """The best sequences of each source, best first; arguments as of ``generate``.

    Yields:
        All groups of beams, after each step but the last.
    """
    # Groups of one rank stand together, since those of the next one look at what they have taken.
    groups = [
        beam_rules.start(row, rank, limit)
        for rank in range(beam_rules.groups)
        for row, limit in enumerate(batch.limits)
    ]
    each = len(groups[0].scores)
    step = _Step(model, batch, rules, each, min(max(2, 1 + len(rules.eos_token_id)) * each, each * model.vocab))
    state = rules.open_state(model, batch, branches=True)
    state.reorder(np.repeat([group.row for group in groups], each))
    active = groups
    # Then the few most probable tokens of a beam are all that may go on.
    takes_best = beam_rules.groups == 1 and not beam_rules.constraints
    while True:
        if takes_best and (best := step.best(active, model, state.hidden)) is not None:
            chosen = step(active, *best)
        elif takes_best and rules.only_forbid:  # somebody in the batch needs all scores: nobody's may change by that
            chosen = step(active, model.log_probabilities(state.hidden))
        else:
            chosen = step(active, log_softmax(state.contrast(model.logits(state.hidden))))
        stay = [i for i, beams in enumerate(chosen) if beams is not None]
        if not stay:
            break
        order = np.concatenate([i * each + beams for i in stay if (beams := chosen[i]) is not None])
        active = [active[i] for i in stay]
        state.reorder(order, within=len(stay) == len(chosen))
        yield groups
        state.append(np.concatenate([group.running[:, -1] for group in active]))
    return _results(model, batch, groups, beam_rules.returned, with_log_probabilities)


class _Step:
    """Moves all groups on by a token."""

    def __init__(self, model: Transformer, batch: Batch, rules: Rules, each: int, keep: int) -> None:
        self._batch, self._rules, self._each, self.keep = batch, rules, each, keep
        self._ends = Ends(batch, rules)
        self._streams = rules.streams(batch.numbers)

    def __call__(
        self, active: Sequence[Group], scores: FloatArray, tokens: IntArray | None = None
    ) -> list[IntArray | None]:
        """The beams that each group's new ones continue; None: it is done.

        Args:
            scores: log-probabilities by beam, of the whole vocabulary, or of ``tokens``, of the same shape, which the
                rules allow.
        """
        chosen: list[IntArray | None] = []
        taken = [np.zeros(0, np.int64)] * len(self._batch.prompts)
        for _, same in groupby(active, lambda group: group.rank):
            groups = list(same)
            begin = len(chosen) * self._each
            own = scores[begin : begin + len(groups) * self._each]
            if tokens is None:
                own = self._process(groups, own, taken)
            for group, log_probs in zip(groups, own.reshape(len(groups), self._each, -1), strict=True):
                stream = self._streams[group.row] if self._streams else None
                best = None if tokens is None else tokens[len(chosen) * self._each :][: self._each]
                chosen.append(group.advance(log_probs, self.keep, self._ends, stream, best))
                taken[group.row] = np.concatenate([taken[group.row], group.running[:, -1]])
        return chosen

    def best(
        self, active: Sequence[Group], model: Transformer, hidden: FloatArray
    ) -> tuple[FloatArray, IntArray] | None:
        """As many tokens of each beam as may go on, with their log-probabilities; None: all scores are needed."""
        keep = min(self.keep, model.vocab)
        if self._rules.leave_scores:
            return model.most_probable(hidden, keep)
        if not self._rules.only_forbid:
            return None
        step = self._ends.step(active, np.concatenate([group.running for group in active]))
        return model.most_probable_allowed(hidden, keep, self._rules.forbidden(step))

    def _process(self, groups: Sequence[Group], scores: FloatArray, taken: Sequence[IntArray]) -> FloatArray:
        if not self._rules.processors:
            return scores
        written = np.concatenate([group.running for group in groups])
        step = self._ends.step(groups, written, [taken[group.row] for group in groups])
        scores = self._rules.process(step, scores)
        # A beam may have no way on while others of its source have.
        rows = np.array([group.row for group in groups])
        check_open(scores.reshape(len(groups), -1), self._rules.sample, self._batch, rows)
        return scores


def _results(
    model: Transformer, batch: Batch, groups: Sequence[Group], returned: int, with_log_probabilities: bool
) -> list[list[Generated]]:
    made: list[list[Generated]] = []
    for row in range(len(batch.prompts)):
        own = [group for group in groups if group.row == row]
        best = sorted((pair for group in own for pair in group.done.best), key=lambda pair: -pair[0])
        if len(best) < returned:  # Few whole sequences: the best of those that would have gone on.
            rest = [
                (group.done.score(total, len(ids)), ids)
                for group in own
                for total, ids in zip(group.scores, group.running, strict=True)
                if not any(np.array_equal(ids, done) for _, done in best)
            ]
            best += sorted(rest, key=lambda pair: -pair[0])
        made.append([_generated(score, ids) for score, ids in best[:returned]])
    if with_log_probabilities:
        add_log_probabilities(model, batch, made)
    return made


def _generated(score: float, ids: IntArray) -> Generated:
    generated = Generated(ids.tolist())
    generated.score = score
    return generated


def add_log_probabilities(model: Transformer, batch: Batch, made: Sequence[Sequence[Generated]]) -> None:
    """To as many sequences of each source, by teacher forcing."""
    for ranked in zip(*made, strict=True):
        targets = [np.array(ids) for ids in ranked]
        found = log_probabilities(model, batch.prompts, targets, batch.memory, batch.prefix)
        for ids, values in zip(ranked, found, strict=True):
            ids.log_probabilities = values
