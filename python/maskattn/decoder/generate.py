"""Search without beams: one token after another for a ragged batch, the most probable one or a draw."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from maskattn.decoder import processors
from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.memory import Memory, Prefix
from maskattn.decoder.model import Transformer
from maskattn.decoder.processors import NO_TOKEN
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import draw
from maskattn.decoder.score import log_softmax_at

T = TypeVar("T")
Item = TypeVar("Item")


class Speculated(NamedTuple):
    """What became of drafts: passes through the model, the prompt's among them; tokens drafted, and accepted."""

    passes: int
    drafted: int
    accepted: int


class Generated(list[int]):
    """New token ids, and what went with them where it was asked for.

    Attributes:
        log_probabilities: shape (len(self),), float32: of each token under the model's own scores, before any option
            has changed them; as ``score_ids`` gives them. Or None.
        cross_attention: from each token to the source: (layers, heads, len(self), source_len), or (pairs, len(self),
            source_len) if pairs were asked for; float32. Or None.
        score: under beams, what ranks them: the sum of log-probabilities over a power of the length. Or None.
        speculated: under ``assistant_model`` or ``prompt_lookup_num_tokens``, what became of drafts. Or None.
    """

    log_probabilities: FloatArray | None = None
    score: float | None = None
    cross_attention: FloatArray | None = None
    speculated: Speculated | None = None


@dataclass(frozen=True)
class Batch:
    """Sequences that are written together.

    Attributes:
        prompts: one array of decoder inputs per sequence, none empty; with an encoder, the start token.
        limits: the most new tokens per sequence, each at least 1.
        numbers: which sequences of the call they are.
        memory, prefix: what the decoder reads besides.
        sources: the token ids that an encoder has read, if it has.
    """

    prompts: Sequence[IntArray]
    limits: Sequence[int]
    numbers: Sequence[int]
    memory: Memory | None = None
    prefix: Prefix | None = None
    sources: Sequence[IntArray] | None = None


_NO_SCORES = np.zeros((0, 0), np.float32)


class Written(NamedTuple):
    """What a step has written.

    Attributes:
        rows: shape (n,), which sequences of the batch have a token more.
        tokens: shape (n,), those tokens.
        open: shape (n,), which of them go on.
        log_probabilities: shape (n,), float32, or None where nobody asks for them.
    """

    rows: IntArray
    tokens: IntArray
    open: BoolArray
    log_probabilities: FloatArray | None


class Writer:
    """The tokens of a batch while they are written: all of a search without beams but the model.

    Attributes:
        rows: who is still being written; row ``i`` of the scores is of sequence ``rows[i]``.
    """

    rows: IntArray

    def __init__(self, batch: Batch, rules: Rules, vocab: int, *, log_probabilities: bool = False) -> None:
        self._batch, self._rules = batch, rules
        begin, most = max(map(len, batch.prompts)), np.array(batch.limits)
        # Prompts end in the same column, so that what the rules look back on does too.
        self._tokens = np.full((len(most), begin + int(most.max())), NO_TOKEN, np.int64)
        for row, prompt in zip(self._tokens, batch.prompts, strict=True):
            row[begin - len(prompt) : begin] = prompt
        self._likely = np.zeros(self._tokens.shape, np.float32) if log_probabilities else None
        self._begin = self._now = begin
        self._ends = begin + most
        self.rows = np.arange(len(most))
        self._is_end = np.zeros(vocab, np.bool_)
        self._is_end[list(rules.eos_token_id)] = True
        self._streams = rules.streams(batch.numbers)

    @property
    def takes_best(self) -> bool:
        """Whether nothing is asked of scores but which one is the highest."""
        return self._rules.leave_scores and self._likely is None

    def forbidden(self) -> list[set[int]] | None:
        """What may not come next, of each of ``rows``; None: :meth:`take` must see the scores."""
        if self._likely is not None or not self._rules.only_forbid:
            return None
        return self._rules.forbidden(self._step())

    def take(self, raw: FloatArray, contrasted: FloatArray | None = None) -> Written:
        """Choose by scores (len(rows), vocab), which may be changed; and :meth:`append`.

        Args:
            raw: the model's own.
            contrasted: those by which tokens are chosen, where it is not these.
        """
        rules, likely, scores = self._rules, None, raw if contrasted is None else contrasted
        if self._likely is not None and rules.processors and scores is raw:
            raw = raw.copy()
        if rules.processors:
            scores = rules.process(self._step(), scores)
            check_open(scores, rules.sample, self._batch, self.rows)
        chosen = draw(scores, [self._streams[i] for i in self.rows]) if rules.sample else scores.argmax(axis=-1)
        if self._likely is not None:
            likely = self._likely[self.rows, self._now] = log_softmax_at(raw, chosen)
        return self.append(chosen, scores, likely)

    def append(self, chosen: IntArray, scores: FloatArray = _NO_SCORES, likely: FloatArray | None = None) -> Written:
        """One token more of each sequence in ``rows``, which from now on are those that go on."""
        rows, self._now = self.rows, self._now + 1
        self._tokens[rows, self._now - 1] = chosen
        ended: BoolArray = self._is_end[chosen] | (self._ends[rows] <= self._now)
        if self._rules.stop is not None or self._rules.criteria:
            ended |= self._rules.stopped(self._step(), scores)
        if ended.any():
            self._ends[rows[ended]] = self._now
            self.rows = rows[~ended]
        return Written(rows, chosen, ~ended, likely)

    def results(self) -> list[Generated]:
        """Of all sequences, once none goes on."""
        made = [Generated(row[self._begin : end].tolist()) for row, end in zip(self._tokens, self._ends, strict=True)]
        if self._likely is not None:
            for ids, row, end in zip(made, self._likely, self._ends, strict=True):
                ids.log_probabilities = row[self._begin : end].copy()
        return made

    def _step(self) -> processors.Step:
        batch, rows = self._batch, self.rows
        last = np.array(batch.limits)[rows] == self._now - self._begin + 1
        sources = None if batch.sources is None else [batch.sources[i] for i in rows]
        numbers = np.array(batch.numbers)[rows]
        return processors.Step(self._tokens[rows, : self._now], self._begin, last, numbers, sources)


def steps(
    model: Transformer, batch: Batch, rules: Rules, *, log_probabilities: bool = False
) -> Generator[Written, None, list[Generated]]:
    """Write behind all prompts at once, and tell after each step; a finished sequence leaves the batch.

    Args:
        log_probabilities: whether to keep them; they cost a pass over the scores.

    Returns:
        New tokens per sequence, up to what ended it, that one included, or its limit.
    """
    writer = Writer(batch, rules, model.vocab, log_probabilities=log_probabilities)
    state = rules.open_state(model, batch)
    while True:
        if writer.takes_best:
            step = writer.append(model.best(state.hidden))
        elif (best := model.most_probable_allowed(state.hidden, 1, writer.forbidden())) is not None:
            step = writer.append(best[1][:, 0])
        else:
            logits = model.logits(state.hidden)
            step = writer.take(logits, state.contrast(logits))
        yield step
        if step.open.all():
            state.append(step.tokens)
            continue
        if not writer.rows.size:
            return writer.results()
        state.reorder(np.flatnonzero(step.open))
        state.append(step.tokens[step.open])


def generate(model: Transformer, batch: Batch, rules: Rules, *, log_probabilities: bool = False) -> list[Generated]:
    """What :func:`steps` returns."""
    return result(steps(model, batch, rules, log_probabilities=log_probabilities))


def result(work: Generator[Item, None, T], told: Callable[[Item], object] | None = None) -> T:
    """What a generator returns at its end; ``told`` hears what it yields until then."""
    while True:
        try:
            item = next(work)
        except StopIteration as end:
            returned: T = end.value
            return returned
        if told is not None:
            told(item)


def check_open(scores: FloatArray, drawing: bool, batch: Batch, rows: IntArray) -> None:
    """Raises ValueError where a row of (rows, vocab) has no token left to take, or to draw."""
    best = scores.max(axis=-1)
    for row in np.flatnonzero(~(np.isfinite(best) if drawing else best > -np.inf)):
        raise ValueError(
            f"options must leave each sequence a token with a finite score, got {best[row]} as the highest for "
            f"sources[{batch.numbers[rows[row]]}]; forbid less, or look at your logits_processor"
        )
