"""Recordings of any length, window by window (arXiv:2212.04356, section 4.5); as ``transformers`` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.generate import Batch
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.stopping import Decode
from maskattn.decoder.transcription.aligner import Aligner
from maskattn.decoder.transcription.attempts import Attempt, FallbackWriter
from maskattn.decoder.transcription.recording import Recording
from maskattn.decoder.transcription.results import Segment, Transcription, Word
from maskattn.decoder.transcription.segments import STRIDE, cut
from maskattn.decoder.transcription.start import language_probs, scores_at_start, silence_probs
from maskattn.decoder.transcription.tokens import SpeechTokens
from maskattn.decoder.transcription.words import SPACELESS

#: Above this temperature what was written is no good context for what comes next.
_TOO_HOT = 0.5


@dataclass(frozen=True)
class Transcriber:
    """Moves recordings on.

    Args:
        task: token, if there is one.
        timestamps: whether they are written.
        conditioned: whether windows are told what was said before them.
        frames: of a window.
        positions: of the decoder.
        most: new tokens of a window, if there is a limit but for the positions.
        seconds: from one timestamp to the next.
        decode: token ids -> text, if the tokenizer is known.
        aligner: finds the words' times, if they are asked for.
    """

    model: Transformer
    tokens: SpeechTokens
    writer: FallbackWriter
    task: int | None
    timestamps: bool
    conditioned: bool
    frames: int
    positions: int
    most: int | None
    seconds: float
    decode: Decode | None
    aligner: Aligner | None = None

    def next_window(self, recordings: Sequence[Recording]) -> None:
        """Transcribe a window of each; the encoder reads it once, whatever is asked of it then."""
        windows = [recording.window(self.frames) for recording in recordings]
        memory = self.model.encode(windows)
        before = [self._context(recording) for recording in recordings]
        no_speech = self._listen(recordings, before, memory)
        prompts = [
            np.array([*context, *self.tokens.prompt(recording.language, self.task, self.timestamps)])
            for context, recording in zip(before, recordings, strict=True)
        ]
        limits = [max(1, min(self.most or self.positions, self.positions - len(prompt))) for prompt in prompts]
        # Draws depend on which window it is, not on the batch.
        numbers = [(recording.number << 32) + recording.seek for recording in recordings]
        batch = Batch(prompts, limits, numbers, memory)
        speculation = self.writer.speculation
        heard = None if speculation is None else speculation.encode(windows)
        attempts = self.writer.write(batch, no_speech, timestamps=self.timestamps, drafted_from=heard)
        for i, (recording, attempt) in enumerate(zip(recordings, attempts, strict=True)):
            self._add(recording, attempt, no_speech[i], prompts[i], memory.reorder(np.array([i])))

    def result(self, recording: Recording) -> Transcription:
        tokens = [token for segment in recording.segments for token in segment.tokens]
        return Transcription(
            self._text(tokens), self._code(recording), recording.language_probs, tuple(recording.segments)
        )

    def _listen(self, recordings: Sequence[Recording], before: list[list[int]], memory: Memory) -> list[float | None]:
        """The probability of silence; and the language, where it is unknown."""
        scores = scores_at_start(self.model, self.tokens.start, before, memory)
        for recording, row in zip(recordings, scores, strict=True):
            if recording.language is None and self.tokens.lang_to_id:
                recording.language_probs = language_probs(row, self.tokens.lang_to_id)
                recording.language = self.tokens.lang_to_id[next(iter(recording.language_probs))]
        return silence_probs(scores, self.tokens.no_speech)

    def _context(self, recording: Recording) -> list[int]:
        """What stands before the prompt: the text of earlier windows, as much of it as fits in half the decoder."""
        if not recording.conditioned or not recording.segments:
            return []
        first, tokens = self.tokens.first_timestamp, list[int]()
        for segment in recording.segments:
            ends_twice = first is not None and len(segment.tokens) > 2 and segment.tokens[-2] >= first
            tokens += segment.tokens[:-1] if ends_twice else segment.tokens
        previous = [] if self.tokens.previous is None else [self.tokens.previous]
        return previous + tokens[-(self.positions // 2 - 1) :]

    def _add(
        self, recording: Recording, attempt: Attempt, no_speech: float | None, prompt: IntArray, memory: Memory
    ) -> None:
        heard, begin = min(self.frames, recording.frames - recording.seek), recording.seek
        recording.conditioned = self.conditioned and attempt.temperature < _TOO_HOT
        if self.writer.thresholds.is_silence(attempt, no_speech):
            recording.seek += heard
            return
        tokens = attempt.tokens[:-1] if attempt.tokens[-1] == self.tokens.end else attempt.tokens
        first = self.tokens.first_timestamp
        cuts, step = cut(tokens, self.model.vocab if first is None else first, heard)
        words = self._words(recording, attempt, [part.tokens for part in cuts], prompt, memory)
        recording.seek += step
        for part, spoken in zip(cuts, words, strict=True):
            recording.segments.append(
                Segment(
                    start=self.seconds * (begin / STRIDE + part.start),
                    end=self.seconds * (begin / STRIDE + part.end),
                    tokens=part.tokens,
                    text=self._text(part.tokens),
                    temperature=attempt.temperature,
                    avg_logprob=attempt.avg_logprob,
                    compression_ratio=attempt.compression_ratio,
                    no_speech_prob=no_speech,
                    words=spoken,
                )
            )

    def _words(
        self,
        recording: Recording,
        attempt: Attempt,
        cuts: Sequence[Sequence[int]],
        prompt: IntArray,
        memory: Memory,
    ) -> Sequence[tuple[Word, ...] | None]:
        """Of each segment of a window."""
        if self.aligner is None:
            return [None] * len(cuts)
        sounding = min(self.frames, recording.sounding - recording.seek)
        # One window at a time: the weights of many heads are large.
        found = self.aligner.boundaries(prompt, attempt.tokens, memory, max(1, sounding // STRIDE))
        times = [self.seconds * (recording.seek / STRIDE + place) for place in found.tolist()]
        spaces, words, start = self._code(recording) not in SPACELESS, list[tuple[Word, ...]](), 0
        for tokens in cuts:
            end = start + len(tokens)
            likely = attempt.log_probabilities[start:end]
            words.append(self.aligner.words(tokens, times[start : end + 1], likely, spaces=spaces))
            start = end
        return words

    def _code(self, recording: Recording) -> str | None:
        """Of the language."""
        return next((code for code, token in self.tokens.lang_to_id.items() if token == recording.language), None)

    def _text(self, tokens: Sequence[int]) -> str | None:
        if self.decode is None:
            return None
        first = self.tokens.first_timestamp
        return self.decode([token for token in tokens if first is None or token < first]).strip()
