"""The loop: draft, read the drafts in one pass, keep what the model would have written."""

from __future__ import annotations

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.generate import Generated, Speculated, check_open
from maskattn.decoder.model import Transformer
from maskattn.decoder.processors import NO_TOKEN
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import draw
from maskattn.decoder.score import log_softmax_at
from maskattn.decoder.speculation.chances import Chances, accept_or_draw
from maskattn.decoder.speculation.drafts import Drafter, Drafts
from maskattn.decoder.speculation.page import Page
from maskattn.decoder.speculation.state import ReadingAhead

#: Rows of scores held at once, as far as a batch allows: with 60,000 tokens, 128 rows are 31 MB.
_ROWS = 128


def speculate(
    model: Transformer, page: Page, rules: Rules, drafter: Drafter, *, log_probabilities: bool = False
) -> list[Generated]:
    """Write behind all prompts of a page at once: the tokens of ``generate``, several of them a pass.

    Greedy tokens have the bits of ``generate``'s, and so have draws for drafts that were not drawn. Drafts that were
    drawn are accepted or replaced by rejection sampling, by which tokens have ``generate``'s distribution.
    """
    batch = page.batch
    judge = Judge(model, page, rules, log_probabilities)
    state = ReadingAhead(model, batch.prompts, batch.limits, batch.memory, batch.prefix)
    rows = np.arange(len(batch.prompts))  # Who is still being written; row i of the state is sequence rows[i].
    _, open_ = judge(rows, state.hidden[:, None], Drafts.of([rows[:0]] * len(rows)))
    while open_.any():
        if not open_.all():
            rows = rows[open_]
            state.reorder(np.flatnonzero(open_))
        # A pass over a draft gives one token more than the draft has.
        drafts = drafter.draft(rows, state.together(page.room(rows)) - 1)
        tokens = np.concatenate([page.tokens[rows, page.ends[rows] - 1, None], drafts.tokens], axis=1)
        counts = 1 + drafts.counts
        hidden = state.read(tokens, None if (counts == tokens.shape[1]).all() else counts)
        taken, open_ = judge(rows, hidden, drafts)
        state.keep(taken)
    return judge.results()


class Judge:
    """Writes tokens as long as they are the drafted ones, and one more, by the model's scores."""

    def __init__(self, model: Transformer, page: Page, rules: Rules, log_probabilities: bool) -> None:
        self._model, self._page, self._rules = model, page, rules
        self._is_end: BoolArray = np.zeros(model.vocab, np.bool_)
        self._is_end[list(rules.eos_token_id)] = True
        self._streams = rules.streams(page.batch.numbers)
        self._likely = np.zeros(page.tokens.shape, np.float32) if log_probabilities else None
        self._passes, self._drafted, self._accepted = np.zeros((3, len(page.tokens)), np.int64)

    def __call__(self, rows: IntArray, hidden: FloatArray, drafts: Drafts) -> tuple[IntArray, BoolArray]:
        """
        Args:
            rows: of the page.
            hidden: shape (len(rows), 1 + most, width), behind the last token and each drafted one.

        Returns:
            How many tokens each row has got, and whether it goes on; both of shape (len(rows),).
        """
        taken, open_ = np.zeros(len(rows), np.int64), np.ones(len(rows), np.bool_)
        self._passes[rows] += 1
        self._drafted[rows] += drafts.counts
        drafted = np.full(hidden.shape[:2], NO_TOKEN)
        drafted[:, :-1] = np.where(np.arange(hidden.shape[1] - 1) < drafts.counts[:, None], drafts.tokens, NO_TOKEN)
        going, end = np.arange(len(rows)), 0
        for place in range(hidden.shape[1]):
            if place == end:
                asked, begin, end = going, place, place + max(1, _ROWS // len(going))
                block = self._model.logits(hidden[going, begin:end])
            scores = block[np.searchsorted(asked, going), place - begin]
            chances = [drafts.drawn_from(i, place) for i in going.tolist()]
            chosen, ended = self._take(rows[going], scores, drafted[going, place], chances)
            right = chosen == drafted[going, place]
            taken[going] += 1
            self._accepted[rows[going]] += right
            open_[going] = ~ended
            going = going[right & ~ended]
            if not going.size:
                break
        return taken, open_

    def results(self) -> list[Generated]:
        made = []
        for row, end in enumerate(self._page.ends.tolist()):
            ids = Generated(self._page.new(row))
            ids.speculated = Speculated(int(self._passes[row]), int(self._drafted[row]), int(self._accepted[row]))
            if self._likely is not None:
                ids.log_probabilities = self._likely[row, self._page.begin : end].copy()
            made.append(ids)
        return made

    def _take(
        self, rows: IntArray, scores: FloatArray, drafted: IntArray, chances: list[Chances | None]
    ) -> tuple[IntArray, BoolArray]:
        """Write the next token of each row: the tokens, and whether a sequence ends with its."""
        page, rules, columns = self._page, self._rules, self._page.ends[rows]
        raw = scores.copy() if self._likely is not None and rules.processors else scores
        if rules.processors:
            scores = page.process(rules, rows, columns, scores)
            check_open(scores, rules.sample, page.batch, rows)
        chosen = self._choose(rows, scores, drafted, chances)
        page.write(rows, chosen)
        if self._likely is not None:
            self._likely[rows, columns] = log_softmax_at(raw, chosen)
        ended = self._is_end[chosen]
        if rules.stop is not None or rules.criteria:
            for some, step in page.steps(rows, columns + 1):
                ended[some] |= rules.stopped(step, scores[some])
        return chosen, ended | (page.room(rows) == 0)

    def _choose(self, rows: IntArray, scores: FloatArray, drafted: IntArray, chances: list[Chances | None]) -> IntArray:
        if not self._rules.sample:
            best: IntArray = scores.argmax(axis=-1)
            return best
        chosen = np.empty(len(rows), np.int64)
        for i, (row, stream) in enumerate(zip(scores, (self._streams[i] for i in rows), strict=True)):
            of = chances[i]
            if of is None:
                chosen[i : i + 1] = draw(row[None], [stream])
            else:
                chosen[i] = accept_or_draw(int(drafted[i]), of, Chances.of(row), stream)
        return chosen
