"""What a model can be asked about recordings, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.requests import Progress
from maskattn.decoder.rules import Rules
from maskattn.decoder.search import find_search, goes_token_by_token, with_state
from maskattn.decoder.speculation import Speculation
from maskattn.decoder.stopping import Decode
from maskattn.decoder.transcription.aligner import Aligner
from maskattn.decoder.transcription.attempts import FallbackWriter, Thresholds
from maskattn.decoder.transcription.recording import Recording, Sound, read_settings, read_sounds
from maskattn.decoder.transcription.results import Transcription
from maskattn.decoder.transcription.segments import STRIDE
from maskattn.decoder.transcription.start import language_probs, scores_at_start
from maskattn.decoder.transcription.tokens import SpeechTokens
from maskattn.decoder.transcription.transcriber import Transcriber
from maskattn.speech import MelSettings, log_mel

#: Options of generation that mean nothing here, with what to use instead.
_REFUSED = {
    "do_sample": "pass temperatures above 0",
    "temperature": "pass temperatures",
    "num_return_sequences": "take the best one",
    "prefix_allowed_tokens_fn": "pass a logits_processor",
    "stop_strings": "look for them in the text",
    "shortlist": "pass suppress_tokens",
    "json_schema": "pass a logits_processor",
    "regex": "pass a logits_processor",
    "grammar": "pass a logits_processor",
}
#: Of what else than None switches one of them off in a file.
_OFF: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (None, 1),
    "shortlist": (None, []),
    "stop_strings": (None, []),
}


@dataclass(frozen=True)
class Hearing:
    """A model that hears: its parts, and what its checkpoint says of sound.

    Args:
        written: what each token writes; raises ValueError, if there is no tokenizer that says so.

    Raises:
        ValueError: it does not hear, or the checkpoint's files are not as they must be.
    """

    model: Transformer
    generation: Mapping[str, Any]
    config: Mapping[str, Any]
    start: int | None
    directory: Path
    decode: Decode | None
    written: Callable[[], Mapping[int, bytes]]

    def __post_init__(self) -> None:
        if self.model.encoder is None or not self.model.encoder.sizes.mels or self.start is None:
            raise ValueError(
                f"this needs a model that hears, such as Whisper, got family {self.model.family.name}; use generate"
            )

    @cached_property
    def tokens(self) -> SpeechTokens:
        assert self.start is not None
        return SpeechTokens.read(self.generation, self.config, self.start, self.model.vocab)

    @cached_property
    def settings(self) -> MelSettings:
        assert self.model.encoder is not None
        sizes = self.model.encoder.sizes
        return read_settings(self.directory, sizes.mels, 2 * sizes.positions)

    def detect_language(
        self, sources: Sequence[Sound], batch_size: int, progress: Progress | None
    ) -> list[dict[str, float]]:
        """See :meth:`maskattn.Model.detect_language`."""
        check.count("batch_size", batch_size)
        if not self.tokens.lang_to_id:
            raise ValueError(
                "detect_language needs lang_to_id in generation_config.json, got none; the model writes one language, "
                "or the file is too old: take that of the original model"
            )
        sounds, found = read_sounds(sources, self.settings.sampling_rate), list[dict[str, float]]()
        for start in range(0, len(sounds), batch_size):
            some = [self._open(0, sound).window(self.settings.chunk_frames) for sound in sounds[start:][:batch_size]]
            scores = scores_at_start(self.model, self.tokens.start, [[]] * len(some), self.model.encode(some))
            found += [language_probs(row, self.tokens.lang_to_id) for row in scores]
            if progress is not None:
                progress(len(found), len(sounds))
        return found

    def transcribe(
        self,
        sources: Sequence[Sound],
        *,
        language: str | Sequence[str | None] | None,
        task: str | None,
        return_timestamps: bool | None,
        word_timestamps: bool,
        condition_on_prev_tokens: bool | None,
        temperatures: float | Sequence[float],
        thresholds: Mapping[str, float | None],
        batch_size: int,
        progress: Progress | None,
        options: Mapping[str, Any],
    ) -> list[Transcription]:
        """See :meth:`maskattn.Model.transcribe`."""
        check.count("batch_size", batch_size)
        tokens = self.tokens.asked(language, task)
        writer = self._writer(tokens, temperatures, thresholds, options)
        conditioned = self._flag("condition_on_prev_tokens", condition_on_prev_tokens)
        transcriber = self._transcriber(writer, tokens.task_id(task), bool(conditioned))
        if self._flag("word_timestamps", word_timestamps):
            transcriber = replace(transcriber, aligner=self._aligner())
        sounds = read_sounds(sources, self.settings.sampling_rate)
        spoken = [tokens.language_id(one) for one in _languages(language, len(sounds))]
        asked = self._flag("return_timestamps", return_timestamps)
        if asked is None and transcriber.aligner is not None:  # as transformers has it
            asked = tokens.no_timestamps is not None
        with_times = [self._with_times(i, sound, asked) for i, sound in enumerate(sounds)]
        made: list[Transcription | None] = [None] * len(sounds)
        report = _Report([self._frames(sound) for sound in sounds], progress)
        for timestamps in (False, True):
            some = [i for i, flag in enumerate(with_times) if flag == timestamps]
            waiting = (self._open(i, sounds[i], spoken[i], bool(conditioned)) for i in some)
            ours = replace(transcriber, timestamps=timestamps)
            for recording in _transcribed(ours, waiting, batch_size, report):
                made[recording.number] = ours.result(recording)
        return [one for one in made if one is not None]

    def _writer(
        self,
        tokens: SpeechTokens,
        temperatures: float | Sequence[float],
        thresholds: Mapping[str, float | None],
        options: Mapping[str, Any],
    ) -> FallbackWriter:
        for name in _REFUSED.keys() & options:
            raise TypeError(f"options of transcribe must not have {name}, got {options[name]!r:.40}; {_REFUSED[name]}")
        for name, value in self.generation.items():
            # What temperatures say comes before the two of a file, as in transformers.
            if name in _REFUSED and name not in ("do_sample", "temperature") and value not in _OFF.get(name, (None,)):
                raise ValueError(
                    f"{name} must be off in the generation config to transcribe, got {value!r:.40}; {_REFUSED[name]}, "
                    "and take it out of generation_config.json"
                )
        settings = Options(self.generation, options, self.model.vocab)
        rules = with_state(self.model, settings, Rules.read(settings))
        find_search(self.model, settings, rules)  # refuses wrong ones before any work
        speculation = Speculation.read(settings, self.model)
        if speculation is not None and not goes_token_by_token(settings):
            raise ValueError(
                "assistant_model and prompt_lookup_num_tokens must come without penalty_alpha, got both; leave one out"
            )
        numbers = {name: self._number(name, value) for name, value in thresholds.items()}
        limits = Thresholds(**{name.removesuffix("_threshold"): value for name, value in numbers.items()})
        return FallbackWriter(
            self.model, tokens, self.generation, options, _temperatures(temperatures), limits, speculation
        )

    def _transcriber(self, writer: FallbackWriter, task: int | None, conditioned: bool) -> Transcriber:
        assert self.model.decoder is not None
        options = Options(self.generation, writer.asked, self.model.vocab)
        most = options.integer("max_new_tokens", 1)
        if most is None or (options.asked("max_length") and not options.asked("max_new_tokens")):
            most = options.integer("max_length", 1)  # in which transformers does not count this prompt
        return Transcriber(
            model=self.model,
            tokens=writer.tokens,
            writer=writer,
            task=task,
            timestamps=False,
            conditioned=conditioned,
            frames=self.settings.chunk_frames,
            positions=self.model.decoder.sizes.positions,
            most=most,
            seconds=STRIDE * self.settings.hop_length / self.settings.sampling_rate,
            decode=self.decode,
        )

    def _aligner(self) -> Aligner:
        first = self.tokens.first_timestamp
        return Aligner.read(self.model, self.generation, self.config, first, self.written())

    def _frames(self, sound: FloatArray) -> int:
        return max(len(sound), self.settings.chunk_samples) // self.settings.hop_length

    def _open(
        self, number: int, sound: FloatArray, language: int | None = None, conditioned: bool = False
    ) -> Recording:
        features = log_mel(sound, self.settings, samples=self.settings.chunk_samples)
        sounding = min(-(-len(sound) // self.settings.hop_length), features.shape[1])
        return Recording(number, features, sounding, language, conditioned)

    def _with_times(self, i: int, sound: FloatArray, asked: bool | None) -> bool:
        """Whether timestamps are written: the windows of a long recording begin where they say."""
        long = self._frames(sound) > self.settings.chunk_frames
        if long and asked is False:
            raise ValueError(
                f"return_timestamps must not be False for sources[{i}], which has {len(sound)} samples, more than a "
                f"window of {self.settings.chunk_samples}: timestamps say where the next window begins; leave it out"
            )
        if (long or asked) and self.tokens.no_timestamps is None:
            raise ValueError(
                f"no_timestamps_token_id must be in generation_config.json to transcribe sources[{i}] with timestamps, "
                "got none; take that file from the original model"
            )
        return long or bool(asked)

    def _flag(self, name: str, value: object) -> bool | None:
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{name} must be True, False or None, got {value!r:.40}; pass None for the default")
        return value if value is not None else self.generation.get(name) or None

    def _number(self, name: str, value: object) -> float | None:
        """The call's value, else the generation config's."""
        value = self.generation.get(name) if value is None else value
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise TypeError(f"{name} must be a number or None, got {value!r:.40}; pass None for no threshold")
        return value


class _Report:
    """Tells ``progress`` how many frames of all recordings have been heard."""

    def __init__(self, frames: Sequence[int], progress: Progress | None) -> None:
        self._frames, self._progress, self._seen = frames, progress, [0] * len(frames)

    def __call__(self, recordings: Sequence[Recording]) -> None:
        for recording in recordings:
            self._seen[recording.number] = min(recording.seek, recording.frames)
        if self._progress is not None:
            self._progress(sum(self._seen), sum(self._frames))


def _transcribed(
    transcriber: Transcriber, waiting: Iterator[Recording], batch_size: int, report: _Report
) -> Iterator[Recording]:
    """Recordings as they are done; when one is, the next takes its place in the batch."""
    active = list(islice(waiting, batch_size))
    while active:
        transcriber.next_window(active)
        report(active)
        yield from (recording for recording in active if recording.done)
        active = [recording for recording in active if not recording.done]
        active += islice(waiting, batch_size - len(active))


def _temperatures(value: object) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else (value,)
    if not values or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        raise TypeError(f"temperatures must be a number or several, got {value!r:.40}; pass 0.0 for greedy search")
    if not all(np.isfinite(one) and one >= 0 for one in values):
        raise ValueError(f"temperatures must be finite and at least 0, got {value!r:.40}; pass 0.0 for greedy search")
    return tuple(float(one) for one in values)


def _languages(language: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """One per recording."""
    languages = list(language) if isinstance(language, Sequence) and not isinstance(language, str) else [language]
    if not all(one is None or isinstance(one, str) for one in languages):
        raise TypeError(f"language must be a str, None, or a list of them, got {language!r:.60}; pass 'en'")
    if isinstance(language, str | None):
        return languages * count
    if len(languages) != count:
        raise ValueError(f"language must be one or one per source, got {len(languages)} for {count} sources")
    return languages
