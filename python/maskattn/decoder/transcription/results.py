"""What a transcription is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word with its punctuation.

    Attributes:
        start, end: seconds from the beginning of the recording, in steps of 0.02; equal where no step is left to it.
        text: with the space before it, if there is one: the words of a segment are its text.
        probability: mean of its tokens' probabilities, by the scores that ``Segment.avg_logprob`` is of.
    """

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of sound and what is said in it.

    Attributes:
        start, end: seconds from the beginning of the recording.
        tokens: ids, with the timestamps around them if they were asked for.
        text: or None, if the checkpoint has no known tokenizer.
        temperature: at which its window was written; 0 is greedy search.
        avg_logprob: mean log-probability of the tokens of its window and the end token, by the processed scores.
        compression_ratio: bytes of the tokens of its window by their bytes after zlib; high where text repeats itself.
        no_speech_prob: the probability that nobody speaks in its window; None, if the model has no token for that.
        words: with their times, if they were asked for; they need not lie between ``start`` and ``end``, which the
            model writes, while these are read off its cross-attention.
    """

    start: float
    end: float
    tokens: tuple[int, ...]
    text: str | None
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float | None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class Transcription:
    """A recording in words.

    Attributes:
        text: of all segments; None, if the checkpoint has no known tokenizer.
        language: code, such as ``en``; None for a model of one language.
        language_probs: of the languages by code, the most probable first; None, if the language was given.
        segments: in order of time.
    """

    text: str | None
    language: str | None
    language_probs: dict[str, float] | None
    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of all segments: what ``transformers``' ``generate`` returns."""
        return tuple(token for segment in self.segments for token in segment.tokens)
