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

#: Drafted tokens of one place, in the order of their draws, and what they were drawn from.
Choices = tuple[list[int], Chances]


def speculate(
    model: Transformer,
    page: Page,
    rules: Rules,
    drafter: Drafter,
    *,
    branches: int = 1,
    log_probabilities: bool = False,
) -> list[Generated]:
    """Write behind all prompts of a page at once: the tokens of ``generate``, several of them a pass.

    Greedy tokens have the bits of ``generate``'s, and so have draws for drafts that were not drawn. Drafts that were
    drawn are accepted or replaced by rejection sampling, by which tokens have ``generate``'s distribution.

    Args:
        branches: the most that ``drafter`` gives a sequence.
    """
    batch = page.batch
    judge = Judge(model, page, rules, log_probabilities)
    state = ReadingAhead(model, batch.prompts, batch.limits, batch.memory, batch.prefix, branches=branches > 1)
    rows = np.arange(len(batch.prompts))  # Who is still being written; row i of the state is sequence rows[i].
    taken, open_, _ = judge(rows, state.hidden[:, None], Drafts.of([[]] * len(rows)))
    while open_.any():
        if not open_.all():
            rows = rows[open_]
            state.reorder(np.flatnonzero(open_))
        # A pass over a draft gives one token more than the draft has.
        drafts = drafter.draft(rows, state.together(page.room(rows)) - 1)
        if drafts.branches.max() == 1 or state.outgrows(1 + np.maximum.reduceat(drafts.counts, drafts.firsts)):
            drafts = drafts.without_branches()
            taken, open_, _ = judge(rows, _read(state, page, rows, drafts), drafts)
            state.keep(taken)
        else:
            taken, open_, kept = judge(rows, _read(state, page, rows, drafts, trees=True), drafts)
            state.keep(taken, kept, kept - drafts.firsts)
    return judge.results()


def _read(state: ReadingAhead, page: Page, rows: IntArray, drafts: Drafts, *, trees: bool = False) -> FloatArray:
    """The states behind each sequence's last token, and behind those of its drafts."""
    last = page.tokens[rows, page.ends[rows] - 1]
    tokens = np.concatenate([last[drafts.sequences, None], drafts.tokens], axis=1)
    counts = None if drafts.real.all() else 1 + drafts.counts
    return state.read(tokens, counts, drafts.branches, drafts.owners) if trees else state.read(tokens, counts)


class LazyLogits:
    """Scores of the states that are asked for, computed together with those that may be asked for next."""

    def __init__(self, model: Transformer, hidden: FloatArray, drafts: Drafts) -> None:
        self._model, self._hidden = model, hidden
        self._waiting = drafts.own.copy()
        self._where = np.zeros(self._waiting.shape, np.int64)
        self._block: FloatArray = np.zeros((0, 0), np.float32)

    def at(self, branches: IntArray, place: int, alive: BoolArray) -> FloatArray:
        """Scores (len(branches), vocab) of what comes behind ``place`` tokens.

        Args:
            branches: of each sequence asked for the first one that is alive, which owns its state.
            alive: shape (all branches,): which may still be asked for.
        """
        if self._waiting[branches, place].any():
            self._waiting &= alive[:, None]
            many = self._waiting[:, place:].sum(axis=0).cumsum()
            end = place + max(1, int((many <= _ROWS).sum()))
            which = np.nonzero(self._waiting[:, place:end])
            which = which[0], which[1] + place
            self._block = self._model.logits(self._hidden[which])
            self._where[which] = np.arange(len(self._block))
            self._waiting[:, place:end] = False
        rows: FloatArray = self._block[self._where[branches, place]]
        return rows


class Judge:
    """Writes tokens as long as they are the drafted ones, and one more, by the model's scores."""

    def __init__(self, model: Transformer, page: Page, rules: Rules, log_probabilities: bool) -> None:
        self._model, self._page, self._rules = model, page, rules
        self._is_end: BoolArray = np.zeros(model.vocab, np.bool_)
        self._is_end[list(rules.eos_token_id)] = True
        self._streams = rules.streams(page.batch.numbers)
        self._likely = np.zeros(page.tokens.shape, np.float32) if log_probabilities else None
        self._passes, self._drafted, self._accepted = np.zeros((3, len(page.tokens)), np.int64)

    def __call__(self, rows: IntArray, hidden: FloatArray, drafts: Drafts) -> tuple[IntArray, BoolArray, IntArray]:
        """
        Args:
            rows: of the page.
            hidden: shape (branches, 1 + most, width), behind the last token and each drafted one.

        Returns:
            How many tokens each row has got, whether it goes on, and which branch begins with all of these but the
            last; each of shape (len(rows),).
        """
        taken, open_, leads = np.zeros(len(rows), np.int64), np.ones(len(rows), np.bool_), drafts.firsts.copy()
        self._passes[rows] += 1
        self._drafted[rows] += drafts.sizes
        logits, alive = LazyLogits(self._model, hidden, drafts), np.ones(len(drafts.counts), np.bool_)
        going = np.arange(len(rows))
        for place in range(hidden.shape[1]):
            scores = logits.at(leads[going], place, alive)
            if place < hidden.shape[1] - 1:
                alive &= drafts.real[:, place]
            else:
                alive[:] = False
            choices = [] if drafts.chances is None else [_choices(drafts, alive, i, place) for i in going.tolist()]
            chosen, ended = self._take(rows[going], scores, choices)
            taken[going] += 1
            open_[going] = ~ended
            # What goes on is a branch that begins so, the first one of them.
            written = np.full(len(rows), NO_TOKEN)
            written[going] = chosen
            if alive.any():
                alive &= drafts.tokens[:, place] == written[drafts.sequences]
            right = np.flatnonzero(alive)[::-1]
            leads[drafts.sequences[right]] = right
            followed = np.zeros(len(rows), np.bool_)
            followed[drafts.sequences[right]] = True
            self._accepted[rows[followed]] += 1
            going = np.flatnonzero(followed & open_)
            alive &= open_[drafts.sequences]
            if not going.size:
                break
        return taken, open_, leads

    def results(self) -> list[Generated]:
        made = []
        for row, end in enumerate(self._page.ends.tolist()):
            ids = Generated(self._page.new(row))
            ids.speculated = Speculated(int(self._passes[row]), int(self._drafted[row]), int(self._accepted[row]))
            if self._likely is not None:
                ids.log_probabilities = self._likely[row, self._page.begin : end].copy()
            made.append(ids)
        return made

    def _take(self, rows: IntArray, scores: FloatArray, choices: list[Choices | None]) -> tuple[IntArray, BoolArray]:
        """Write the next token of each row: the tokens, and whether a sequence ends with its."""
        page, rules, columns = self._page, self._rules, self._page.ends[rows]
        raw = scores.copy() if self._likely is not None and rules.processors else scores
        if rules.processors:
            scores = page.process(rules, rows, columns, scores)
            check_open(scores, rules.sample, page.batch, rows)
        chosen = self._choose(rows, scores, choices)
        page.write(rows, chosen)
        if self._likely is not None:
            self._likely[rows, columns] = log_softmax_at(raw, chosen)
        ended = self._is_end[chosen]
        if rules.stop is not None or rules.criteria:
            for some, step in page.steps(rows, columns + 1):
                ended[some] |= rules.stopped(step, scores[some])
        return chosen, ended | (page.room(rows) == 0)

    def _choose(self, rows: IntArray, scores: FloatArray, choices: list[Choices | None]) -> IntArray:
        if not self._rules.sample:
            best: IntArray = scores.argmax(axis=-1)
            return best
        chosen = np.empty(len(rows), np.int64)
        for i, (row, stream) in enumerate(zip(scores, (self._streams[i] for i in rows), strict=True)):
            if choices and (drawn := choices[i]) is not None:
                chosen[i] = accept_or_draw(*drawn, Chances.of(row), stream)
            else:
                chosen[i : i + 1] = draw(row[None], [stream])
        return chosen


def _choices(drafts: Drafts, alive: BoolArray, sequence: int, place: int) -> Choices | None:
    """What branches that are alive have drawn for a sequence's next token; None: nothing."""
    assert drafts.chances is not None
    first = drafts.firsts[sequence]
    branches = first + np.flatnonzero(alive[first : first + drafts.branches[sequence]])
    if not branches.size:
        return None
    return list(dict.fromkeys(drafts.tokens[branches, place].tolist())), drafts.chances[branches[0]][place]
