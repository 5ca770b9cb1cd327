"""How sure a model was of what it wrote: log-probabilities under the scores by which it chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.ends import Ends
from maskattn.decoder.generate import Batch
from maskattn.decoder.model import Transformer, pad
from maskattn.decoder.processors import Step
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import log_softmax
from maskattn.decoder.score import log_softmax_at, shift_right


class Recorder:
    """A processor that changes nothing and keeps the log-probabilities of what was chosen, token by token.

    The scores are those of which the choice was made, but for the temperature by which they have been divided.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = np.float32(temperature)
        self._chosen: dict[int, list[float]] = {}
        self._scores: dict[int, FloatArray] = {}  # of the last choice, by sequence

    def __call__(self, step: Step, scores: FloatArray) -> FloatArray:
        if step.new:
            self._add(step.sequences.tolist(), step.tokens[:, -1])
        self._scores.update(zip(step.sequences.tolist(), scores * self._temperature, strict=True))
        return scores

    def log_probabilities(self, numbers: Sequence[int], made: Sequence[Sequence[int]]) -> list[list[float]]:
        """Of each sequence's tokens. Nothing has been processed since its last choice, so that one is added here."""
        self._add(list(numbers), np.array([ids[-1] for ids in made]))
        return [self._chosen[number] for number in numbers]

    def _add(self, numbers: list[int], chosen: IntArray) -> None:
        found = log_softmax_at(np.stack([self._scores[number] for number in numbers]), chosen)
        for number, value in zip(numbers, found.tolist(), strict=True):
            self._chosen.setdefault(number, []).append(value)


class _Row(NamedTuple):
    row: int


def log_probabilities_of(
    model: Transformer, batch: Batch, rules: Rules, made: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The same for what another search wrote, from one pass over it."""
    targets = [np.array(ids) for ids in made]
    inputs, lengths = pad(shift_right(batch.prompts, targets))
    states = model.decode(inputs, batch.memory, new_lengths=lengths)
    ends, found = Ends(batch, rules), [list[float]() for _ in made]
    for now in range(max(map(len, made))):
        rows = [row for row, target in enumerate(targets) if len(target) > now]
        places = [len(batch.prompts[row]) - 1 + now for row in rows]
        step = ends.step([_Row(row) for row in rows], np.stack([targets[row][:now] for row in rows]))
        scores = rules.process(step, log_softmax(model.logits(states[rows, places])))
        values = log_softmax_at(scores, np.array([targets[row][now] for row in rows]))
        for row, value in zip(rows, values.tolist(), strict=True):
            found[row].append(value)
    return found
