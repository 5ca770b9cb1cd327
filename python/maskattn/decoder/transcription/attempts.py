"""Writing what is said in a window, again and at a higher temperature where it looks wrong (arXiv:2212.04356, 4.5)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskattn.decoder.generate import Batch, generate
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.rules import Rules
from maskattn.decoder.search import find_search, goes_token_by_token, with_state
from maskattn.decoder.speculation import Page, Speculation, speculate
from maskattn.decoder.transcription.sureness import Recorder, log_probabilities_of
from maskattn.decoder.transcription.timestamps import TimestampRules
from maskattn.decoder.transcription.tokens import SpeechTokens


@dataclass(frozen=True)
class Attempt:
    """Tokens of a window, the end token last where there is one, and how sure the model was of each."""

    tokens: list[int]
    log_probabilities: list[float]
    temperature: float
    compression_ratio: float

    @property
    def avg_logprob(self) -> float:
        return sum(self.log_probabilities) / len(self.tokens)


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


#: What else belongs to beams, which draws do without.
_NO_BEAMS = {"num_beam_groups": 1, "force_words_ids": (), "constraints": ()}


@dataclass(frozen=True)
class FallbackWriter:
    """Writes windows.

    Args:
        generation: the generation config; asked: options of the call, above it.
        temperatures: tried one after the other; 0 is greedy search, or beams.
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
            options = self._options(max(len(batch.prompts[i]) for i in waiting), number, timestamps=timestamps)
            heard = None if drafted_from is None else drafted_from.reorder(np.array(waiting))
            made = self._attempt(_select(batch, waiting), options, temperature, heard)
            for i, attempt in zip(waiting, made, strict=True):
                attempts[i] = attempt
            waiting = [i for i in waiting if self._again(attempts[i], no_speech[i])]
            if not waiting:
                break
        return [attempt for attempt in attempts if attempt is not None]

    def _again(self, attempt: Attempt | None, no_speech: float | None) -> bool:
        assert attempt is not None
        return self.thresholds.fails(attempt) and not self.thresholds.is_silence(attempt, no_speech)

    def _options(self, begin: int, number: int, *, timestamps: bool) -> Options:
        """Of attempt ``number``, of prompts that end in column ``begin``."""
        temperature, seed = self.temperatures[number], self.asked.get("seed")
        asked: dict[str, Any] = {**self.asked, "do_sample": temperature > 0, "num_return_sequences": 1}
        if temperature > 0:
            asked |= {"temperature": temperature, "num_beams": 1, **_NO_BEAMS}
        if seed is not None:  # or attempts at the same temperature would be the same
            asked["seed"] = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        options = Options(self.generation, asked, self.model.vocab)
        if timestamps:
            assert self.tokens.no_timestamps is not None
            ruled = TimestampRules(
                self.tokens.no_timestamps + 1, self.tokens.no_timestamps, self.tokens.end, begin, self.tokens.latest
            )
            asked["logits_processor"] = [ruled, *options.functions("logits_processor")]
        return options

    def _attempt(self, batch: Batch, options: Options, temperature: float, heard: Memory | None) -> list[Attempt]:
        rules = Rules.read(options)
        if goes_token_by_token(options):
            recorder = Recorder(temperature or 1.0)
            recorded = replace(rules, processors=(*rules.processors, recorder))
            if self.speculation is None:
                made = generate(self.model, batch, recorded)
            else:
                page, branches = Page(batch), self.speculation.branches
                drafter = self.speculation.drafter(self.model, page, rules, heard)
                made = speculate(self.model, page, recorded, drafter, branches=branches)
            sure = recorder.log_probabilities(batch.numbers, made)
        else:
            search = find_search(self.model, options, with_state(self.model, options, rules))
            made = [best for (best,) in search(batch)]
            sure = log_probabilities_of(self.model, batch, rules, made)
        return [
            Attempt(list(ids), values, temperature, compression_ratio(ids, self.model.vocab))
            for ids, values in zip(made, sure, strict=True)
        ]


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
