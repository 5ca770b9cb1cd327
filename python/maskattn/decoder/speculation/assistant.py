"""Drafts by a smaller model that reads and writes the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import softmax
from maskattn.decoder.speculation.drafts import Drafts
from maskattn.decoder.speculation.growing import GrowingTree
from maskattn.decoder.speculation.page import Page
from maskattn.decoder.speculation.state import ReadingAhead


@dataclass(frozen=True)
class Plan:
    """How long drafts are.

    Attributes:
        tokens: ``num_assistant_tokens``, to begin with.
        grows: whether a sequence's drafts become 2 longer after one that was right throughout, else 1 shorter.
        threshold: a draft ends with a token that the assistant holds for less probable.
        branches: how many drafts a sequence may have: one, and tokens in place of one of its own.
    """

    tokens: int
    grows: bool
    threshold: float
    branches: int = 1


class Assistant:
    """A model that drafts by the rules of the model that it assists.

    Args:
        vocab: how many tokens the other model writes. Ids that only one of the two has are never drafted, and are read
            as the assistant's last one: drafts may be worse for it, tokens are not.
        memory: the assistant's own, if it has an encoder.
    """

    def __init__(self, model: Transformer, vocab: int, page: Page, rules: Rules, plan: Plan, memory: Memory | None):
        self._model, self._vocab, self._page, self._rules, self._plan = model, vocab, page, rules, plan
        batch = page.batch
        # Sequences without a draft go along with those that have one, so each needs room for the longest draft.
        most = max(batch.limits)
        prompts = [np.minimum(prompt, model.vocab - 1) for prompt in batch.prompts]
        self._state = ReadingAhead(model, prompts, [limit + most for limit in batch.limits], memory)
        self._rows = np.arange(len(prompts))
        self._read = np.full(len(prompts), page.begin)  # the column behind what it has read of each
        self._started = self._read  # where the reading under way began
        self._lengths = np.full(len(prompts), plan.tokens)  # of the next drafts
        self._drafted: Drafts | None = None
        self._ends = page.ends.copy()
        self._is_end: BoolArray = np.zeros(vocab, np.bool_)
        self._is_end[list(rules.eos_token_id)] = True
        self._streams = rules.streams(batch.numbers, of_drafts=True)

    def draft(self, rows: IntArray, most: IntArray) -> Drafts:
        """As ``Drafter`` says."""
        self._settle(rows)
        columns = self._page.ends[rows]
        wanted = np.minimum(np.minimum(self._lengths, most), self._room(columns))
        counts = np.where(wanted > 0, columns - self._read, 0)
        self._ends, self._started = columns, self._read
        if not counts.any():
            self._drafted = None
            return Drafts.of([[]] * len(rows))
        self._drafted = self._write(rows, columns, wanted, self._catch_up(rows, counts))
        return self._drafted

    def _settle(self, rows: IntArray) -> None:
        """Forget what turned out wrong since the last draft, and the sequences that are no longer among ``rows``."""
        if self._drafted is not None:
            counts, firsts = self._drafted.counts[self._drafted.firsts], self._drafted.firsts
            # Of the first branch, which it has read itself.
            drafted = self._drafted.tokens[firsts]
            columns = np.minimum(self._ends[:, None] + np.arange(drafted.shape[1]), self._page.tokens.shape[1] - 1)
            written = np.arange(drafted.shape[1]) < (self._page.ends[self._rows] - self._ends)[:, None]
            same = (self._page.tokens[self._rows[:, None], columns] == drafted) & written & self._drafted.real[firsts]
            agreed = np.logical_and.accumulate(same, axis=1).sum(axis=1)
            right = np.minimum(self._read, self._ends + agreed)
            self._state.keep(right - self._started)
            self._read = right
            if self._plan.grows:
                longer = np.where(agreed == counts, 2, -1)
                self._lengths = np.maximum(self._lengths + np.where(counts > 0, longer, 0), 1)
        if len(rows) < len(self._rows):
            stay = np.searchsorted(self._rows, rows)
            self._state.reorder(stay)
            self._read, self._lengths, self._rows = self._read[stay], self._lengths[stay], rows

    def _room(self, columns: IntArray) -> IntArray:
        """How many tokens can be drafted: each but the last is read, and so is all that has been written."""
        decoder = self._model.decoder
        assert decoder is not None
        prompts = np.array([len(self._page.batch.prompts[i]) for i in self._rows.tolist()])
        before = columns - self._page.begin + prompts
        most = np.full(len(columns), decoder.sizes.positions or np.iinfo(np.int64).max)
        if (switch := self._model.switch) is not None:
            # Stored keys no longer fit past it; a draft does not go there, what has been written does.
            most = np.where(before <= switch, np.minimum(most, switch), most)
        room: IntArray = most - before + 1
        return room

    def _catch_up(self, rows: IntArray, counts: IntArray) -> FloatArray:
        """Read what has been written: the states (rows, width) that predict what follows."""
        columns = np.minimum(self._read[:, None] + np.arange(counts.max()), self._page.tokens.shape[1] - 1)
        tokens = np.clip(self._page.tokens[rows[:, None], columns], 0, self._model.vocab - 1)
        hidden = self._state.read(tokens, None if (counts == tokens.shape[1]).all() else counts)
        self._read = self._read + counts
        last: FloatArray = hidden[np.arange(len(rows)), np.maximum(counts - 1, 0)]
        return last

    def _write(self, rows: IntArray, columns: IntArray, wanted: IntArray, hidden: FloatArray) -> Drafts:
        growing = [GrowingTree(self._plan.branches, n) for n in wanted.tolist()]
        going = np.flatnonzero(wanted > 0)
        for place in range(int(wanted.max())):
            scores = self._scores(rows[going], columns[going] + place, hidden[going])
            possible = np.isfinite(scores.max(axis=1))
            going, scores = going[possible], scores[possible]
            if self._rules.sample:
                streams = [self._streams[i] for i in rows[going]]
                for i, row, stream in zip(going, scores, streams, strict=True):
                    growing[i].draw(row, stream)
            else:
                for i, row in zip(going, scores, strict=True):
                    growing[i].take_best(row)
            chosen = np.array([growing[i].stem[-1] for i in going], np.int64)
            # Where the rules look for it while the draft goes on.
            self._page.tokens[rows[going], columns[going] + place] = chosen
            on = (wanted[going] > place + 1) & ~self._is_end[chosen]
            if self._plan.threshold:
                on &= softmax(scores)[np.arange(len(going)), chosen] >= self._plan.threshold
            going = going[on]
            if not going.size:
                break
            # The others go along, and forget it: a step of all is the fastest.
            step = np.array([[some.stem[place] if len(some.stem) > place else 0] for some in growing], np.int64)
            hidden = self._state.read(np.minimum(step, self._model.vocab - 1))[:, -1]
            self._read[going] += 1
        if not self._rules.sample:
            return Drafts.of([some.branches() for some in growing])
        return Drafts.of([some.branches() for some in growing], [of for some in growing for of in some.chances()])

    def _scores(self, rows: IntArray, columns: IntArray, hidden: FloatArray) -> FloatArray:
        """Processed scores (rows, vocab) of the tokens in ``columns``."""
        logits = self._model.logits(hidden)[:, : self._vocab]
        missing = self._vocab - logits.shape[1]
        if missing:
            logits = np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf)
        return self._page.process(self._rules, rows, columns, np.ascontiguousarray(logits))
