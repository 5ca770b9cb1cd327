"""Writing what is said in a window, again and at a higher temperature where it looks wrong (arXiv:2212.04356, 4.5)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.generate import Batch, generate
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.processors import Step
from maskattn.decoder.rules import Rules
from maskattn.decoder.score import log_softmax_at
from maskattn.decoder.speculation import Page, Speculation, speculate
from maskattn.decoder.transcription.timestamps import TimestampRules
from maskattn.decoder.transcription.tokens import SpeechTokens


@dataclass(frozen=True)
class Attempt:
    """Tokens of a window, the end token last where there is one, and how sure the model was of them."""

    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float


@dataclass(frozen=True)
class Thresholds:
    """When an attempt is not good enough; None: it is not asked for."""

    compression_ratio: float | None = None
    logprob: float | None = None
    no_speech: float | None = None

    def is_silence(self, attempt: Attempt, no_speech_prob: float | None) -> bool:
        """Whether nobody speaks: the model says so, and is not sure of what it wrote."""
        unsure = self.logprob is None or attempt.avg_logprob < self.logprob
        return self.no_speech is not None and no_speech_prob is not None and no_speech_prob > self.no_speech and unsure

    def fails(self, attempt: Attempt) -> bool:
        repeats = self.compression_ratio is not None and attempt.compression_ratio > self.compression_ratio
        return repeats or (self.logprob is not None and attempt.avg_logprob < self.logprob)


@dataclass(frozen=True)
class Writer:
    """Writes windows.

    Args:
        generation: the generation config; asked: options of the call, above it.
        temperatures: tried one after the other; 0 is greedy search.
        speculation: what drafts, if something does.
    """

    model: Transformer
    tokens: SpeechTokens
    generation: Mapping[str, Any]
    asked: Mapping[str, Any]
    temperatures: Sequence[float]
    thresholds: Thresholds
    speculation: Speculation | None = None

    def write(
        self, batch: Batch, no_speech: Sequence[float | None], *, timestamps: bool, drafted_from: Memory | None = None
    ) -> list[Attempt]:
        """The first attempt at each window that is good enough, or is of silence; else the last one.

        Args:
            drafted_from: what an assistant has heard of the windows.
        """
        attempts: list[Attempt | None] = [None] * len(batch.prompts)
        waiting = list(range(len(attempts)))
        for number, temperature in enumerate(self.temperatures):
            rules = self._rules(max(len(batch.prompts[i]) for i in waiting), number, timestamps=timestamps)
            heard = None if drafted_from is None else drafted_from.reorder(np.array(waiting))
            made = self._attempt(_select(batch, waiting), rules, temperature, heard)
            for i, attempt in zip(waiting, made, strict=True):
                attempts[i] = attempt
            waiting = [i for i in waiting if self._again(attempts[i], no_speech[i])]
            if not waiting:
                break
        return [attempt for attempt in attempts if attempt is not None]

    def _again(self, attempt: Attempt | None, no_speech: float | None) -> bool:
        assert attempt is not None
        return self.thresholds.fails(attempt) and not self.thresholds.is_silence(attempt, no_speech)

    def _rules(self, begin: int, number: int, *, timestamps: bool) -> Rules:
        """Of attempt ``number``, of prompts that end in column ``begin``."""
        temperature, seed = self.temperatures[number], self.asked.get("seed")
        asked: dict[str, Any] = {**self.asked, "do_sample": temperature > 0}
        if temperature > 0:
            asked["temperature"] = temperature
        if seed is not None:  # or attempts at the same temperature would be the same
            asked["seed"] = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        options = Options(self.generation, asked, self.model.vocab)
        if timestamps:
            assert self.tokens.no_timestamps is not None
            ruled = TimestampRules(
                self.tokens.no_timestamps + 1, self.tokens.no_timestamps, self.tokens.end, begin, self.tokens.latest
            )
            asked["logits_processor"] = [ruled, *options.functions("logits_processor")]
        return Rules.read(options)

    def _attempt(self, batch: Batch, rules: Rules, temperature: float, heard: Memory | None) -> list[Attempt]:
        recorder = _Recorder(temperature or 1.0)
        recorded = replace(rules, processors=(*rules.processors, recorder))
        if self.speculation is None:
            made = generate(self.model, batch, recorded)
        else:
            page = Page(batch)
            drafter = self.speculation.drafter(self.model, page, rules, heard)
            made = speculate(self.model, page, recorded, drafter)
        totals = recorder.totals(batch.numbers, made)
        return [
            Attempt(list(ids), temperature, total / len(ids), compression_ratio(ids, self.model.vocab))
            for ids, total in zip(made, totals, strict=True)
        ]


class _Recorder:
    """A processor that changes nothing and sums the log-probabilities of what was chosen.

    The scores are those of which the choice was made, but for the temperature by which they have been divided.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = np.float32(temperature)
        self._totals: dict[int, float] = {}
        self._scores: dict[int, FloatArray] = {}  # of the last choice, by sequence

    def __call__(self, step: Step, scores: FloatArray) -> FloatArray:
        if step.new:
            self._add(step.sequences.tolist(), step.tokens[:, -1])
        self._scores.update(zip(step.sequences.tolist(), scores * self._temperature, strict=True))
        return scores

    def totals(self, numbers: Sequence[int], made: Sequence[Sequence[int]]) -> list[float]:
        """Of each sequence. Nothing has been processed since its last choice, so that one is added here."""
        self._add(list(numbers), np.array([ids[-1] for ids in made]))
        return [self._totals[number] for number in numbers]

    def _add(self, numbers: list[int], chosen: IntArray) -> None:
        found = log_softmax_at(np.stack([self._scores[number] for number in numbers]), chosen)
        for number, value in zip(numbers, found.tolist(), strict=True):
            self._totals[number] = self._totals.get(number, 0.0) + value


def compression_ratio(tokens: Sequence[int], vocab: int) -> float:
    """Bytes of token ids, of as many bytes each as the vocabulary needs, by their bytes after zlib."""
    size = int(math.log2(vocab) / 8) + 1
    content = b"".join(int(token).to_bytes(size, "little") for token in tokens)
    return len(content) / len(zlib.compress(content))


def _select(batch: Batch, rows: list[int]) -> Batch:
    if len(rows) == len(batch.prompts):
        return batch
    return Batch(
        [batch.prompts[i] for i in rows],
        [batch.limits[i] for i in rows],
        [batch.numbers[i] for i in rows],
        None if batch.memory is None else batch.memory.reorder(np.array(rows)),
    )
