"""Beam search as ``transformers`` does it: of all continuations of a source's beams the most probable go on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.generate import Batch, Generated, check_open, result
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.processors import NO_TOKEN, Step
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import log_softmax
from maskattn.decoder.score import log_probabilities
from maskattn.decoder.state import DecoderState


@dataclass(frozen=True)
class BeamRules:
    """The options of beam search.

    Attributes:
        beams: ``num_beams``.
        returned: ``num_return_sequences``.
        length_penalty: scores of whole sequences are divided by this power of their length.
        early_stopping: whether a source is done with as many whole sequences as beams (True), once better ones are
            unlikely (False), or impossible ("never").
    """

    beams: int
    returned: int
    length_penalty: float
    early_stopping: bool | str

    @classmethod
    def read(cls, options: Options) -> BeamRules | None:
        """None for a search without beams.

        Raises:
            TypeError, ValueError, NotImplementedError: an option is not as GenerationOptions says.
        """
        beams, returned = options.integer("num_beams", 1) or 1, options.integer("num_return_sequences", 1) or 1
        if returned > beams:
            raise options.wrong("num_return_sequences", f"at most num_beams, {beams}")
        if beams == 1:
            return None
        if options.flag("do_sample"):
            raise NotImplementedError("do_sample must be False with num_beams above 1, got True; draw with num_beams=1")
        penalty = options.number("length_penalty", "a finite number", lambda x: True)
        early = options.get("early_stopping")
        if early not in (None, True, False, "never"):
            raise options.wrong("early_stopping", 'True, False or "never"')
        return cls(beams, returned, 1.0 if penalty is None else penalty, early or False)


@dataclass
class Source:
    """The search for one source.

    Attributes:
        row: of the batch.
        running: shape (beams, new), tokens of what goes on, and ``scores`` (beams,), sums of log-probabilities.
        done: whole sequences with their scores, best first, at most as many as beams.
        improvable: whether a running beam may become better than the worst whole sequence.
    """

    row: int
    limit: int
    running: IntArray
    scores: FloatArray
    done: list[tuple[float, IntArray]] = field(default_factory=list)
    improvable: bool = True

    def advance(self, rules: BeamRules, log_probs: FloatArray, keep: int, ended: BeamEnds) -> IntArray | None:
        """Take a token in.

        Args:
            log_probs: shape (beams, vocab), processed.
            keep: how many continuations are looked at: enough that as many as beams go on.
            ended: which of the continuations (keep, new + 1) are whole.

        Returns:
            The beams that the new ones continue, shape (beams,); None if the source is done.
        """
        beams, vocab = log_probs.shape
        total = (log_probs + self.scores[:, None]).reshape(-1)
        best = np.argpartition(-total, keep - 1)[:keep]
        best = best[np.argsort(-total[best], kind="stable")]
        beam, token = np.divmod(best, vocab)
        candidates = np.concatenate([self.running[beam], token[:, None]], axis=1)
        whole, scores = ended(self, candidates), total[best]
        full = len(self.done) == beams and rules.early_stopping is True
        new = candidates.shape[1]
        if not full and self.improvable:
            for i in np.flatnonzero(whole[:beams]):
                self.done.append((float(scores[i]) / new**rules.length_penalty, candidates[i]))
            self.done = sorted(self.done, key=lambda pair: -pair[0])[:beams]
        if whole.all():
            return None
        on = np.argsort(whole, kind="stable")[:beams]  # those that go on, best first
        self.running = candidates[on]
        self.scores = scores[on] - np.float32(1e9) * whole[on]
        self.improvable &= self._may_improve(rules, new)
        if not self.improvable or (len(self.done) == beams and rules.early_stopping is True):
            return None
        chosen: IntArray = beam[on]
        return chosen

    def best(self, rules: BeamRules) -> IntArray:
        """The sequence that is ahead: what would be returned if it all ended here."""
        running = float(self.scores[0]) / max(self.running.shape[1], 1) ** rules.length_penalty
        return self.done[0][1] if self.done and self.done[0][0] >= running else self.running[0]

    def _may_improve(self, rules: BeamRules, new: int) -> bool:
        if len(self.done) < len(self.scores):
            return True
        longest = self.limit if rules.early_stopping == "never" and rules.length_penalty > 0 else new
        return bool(float(self.scores[0]) / longest**rules.length_penalty > self.done[-1][0])


class BeamEnds:
    """Which continuations of a source are whole: they end with an end token, or are stopped, or have no room."""

    def __init__(self, batch: Batch, rules: Rules, tokens: list[IntArray], begin: int) -> None:
        self._batch, self._rules, self._prompts, self._begin = batch, rules, tokens, begin

    def __call__(self, source: Source, candidates: IntArray) -> BoolArray:
        ended = np.isin(candidates[:, -1], self._rules.eos_token_id)
        ended |= candidates.shape[1] >= source.limit
        if self._rules.stop is not None or self._rules.criteria:
            step = self.step([source], candidates)
            ended = ended | self._rules.stopped(step, np.zeros((len(candidates), 1), np.float32))
        return ended

    def step(self, sources: Sequence[Source], written: IntArray) -> Step:
        """What rules look at: ``written`` behind the prompts, as many rows for each source."""
        each = len(written) // len(sources)
        rows = np.repeat([source.row for source in sources], each)
        prompts = np.stack([self._prompts[row] for row in rows])
        last = np.array([self._batch.limits[row] == written.shape[1] + 1 for row in rows])
        read = None if self._batch.sources is None else [self._batch.sources[row] for row in rows]
        numbers = np.array(self._batch.numbers)[rows]
        return Step(np.concatenate([prompts, written], axis=1), self._begin, last, numbers, read)


def search(
    model: Transformer, batch: Batch, rules: Rules, beam_rules: BeamRules, *, with_log_probabilities: bool = False
) -> list[list[Generated]]:
    """What :func:`search_steps` returns."""
    return result(search_steps(model, batch, rules, beam_rules, with_log_probabilities=with_log_probabilities))


def search_steps(
    model: Transformer, batch: Batch, rules: Rules, beam_rules: BeamRules, *, with_log_probabilities: bool = False
) -> Generator[list[Source], None, list[list[Generated]]]:
    """The best sequences of each source, best first; arguments as of ``generate``.

    Yields:
        All sources, after each step but the last.
    """
    beams, begin = beam_rules.beams, max(map(len, batch.prompts))
    prompts = [np.concatenate([np.full(begin - len(prompt), NO_TOKEN), prompt]) for prompt in batch.prompts]
    ends = BeamEnds(batch, rules, prompts, begin)
    first = np.where(np.arange(beams) == 0, 0, -1e9).astype(np.float32)  # all beams are the same yet: one counts
    sources = [
        Source(row, limit, np.zeros((beams, 0), np.int64), first.copy()) for row, limit in enumerate(batch.limits)
    ]
    keep = min(max(2, 1 + len(rules.eos_token_id)) * beams, beams * model.vocab)
    state = DecoderState(model, batch.prompts, batch.limits, batch.memory, batch.prefix, branches=True)
    state.reorder(np.repeat(np.arange(len(sources)), beams))
    active = sources
    while True:
        scores = log_softmax(model.logits(state.hidden))
        if rules.processors:
            step = ends.step(active, np.concatenate([source.running for source in active]))
            scores = rules.process(step, scores)
            # A beam may have no way on while others of its source have.
            check_open(scores.reshape(len(active), -1), False, batch, np.array([source.row for source in active]))
        chosen = [
            source.advance(beam_rules, scores[i * beams : (i + 1) * beams], keep, ends)
            for i, source in enumerate(active)
        ]
        stay = [i for i, beam in enumerate(chosen) if beam is not None]
        if not stay:
            break
        order = np.concatenate([i * beams + beam for i in stay if (beam := chosen[i]) is not None])
        active = [active[i] for i in stay]
        state.reorder(order, within=len(stay) == len(chosen))
        yield sources
        state.append(np.concatenate([source.running[:, -1] for source in active]))
    return _results(model, batch, sources, beam_rules.returned, with_log_probabilities)


def _results(
    model: Transformer, batch: Batch, sources: Sequence[Source], returned: int, with_log_probabilities: bool
) -> list[list[Generated]]:
    made = []
    for source in sources:
        # Few whole sequences: the best of those that would have gone on.
        rest = [ids for ids in source.running if not any(np.array_equal(ids, done) for _, done in source.done)]
        best = [ids for _, ids in source.done] + rest
        made.append([Generated(ids.tolist()) for ids in best[:returned]])
    if with_log_probabilities:
        for rank in range(returned):
            ranked = [some[rank] for some in made]
            targets = [np.array(ids) for ids in ranked]
            found = log_probabilities(model, batch.prompts, targets, batch.memory, batch.prefix)
            for ids, values in zip(ranked, found, strict=True):
                ids.log_probabilities = values
    return made
