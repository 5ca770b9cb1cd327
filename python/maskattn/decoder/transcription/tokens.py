"""What a generation config says of languages, tasks and times, and the prompt that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maskattn.decoder.transcription.languages import code_of

_OLD = "take generation_config.json from the original model"


@dataclass(frozen=True)
class SpeechTokens:
    """Ids of the tokens that steer a model of speech, most of them under other names in generation_config.json.

    Attributes:
        start, end: of the sequence.
        no_timestamps: what says that no timestamps follow; ids above it are timestamps. None: the model has none.
        previous: what stands before the text of earlier windows, if anything.
        latest: the highest timestamp to begin with, if there is a limit.
        lang_to_id, task_to_id: by code (``en``) and by name (``transcribe``, ``translate``); empty for a model of one
            language and of old checkpoints.
        forced: what an old config forces behind the start token; None in it is a language to be detected.
        language, task: the config's own choice.
    """

    start: int
    end: int
    no_timestamps: int | None
    previous: int | None
    latest: int | None
    lang_to_id: Mapping[str, int]
    task_to_id: Mapping[str, int]
    forced: tuple[int | None, ...]
    language: str | None
    task: str | None

    @classmethod
    def read(cls, generation: Mapping[str, Any], config: Mapping[str, Any], start: int, vocab: int) -> SpeechTokens:
        """From generation_config.json, config.json, the start token and the number of tokens.

        Raises:
            ValueError: a setting is not what it must be; the message names it.
        """
        many = generation.get("is_multilingual") is not False
        languages, tasks = (_table(generation, name, vocab) if many else {} for name in ("lang_to_id", "task_to_id"))
        # One language of several may have been chosen for good, as fine-tuned models do.
        language, task = (generation.get(name) if many else None for name in ("language", "task"))
        end = generation.get("eos_token_id")
        end = end[0] if isinstance(end, list) and len(end) == 1 else end
        forced = generation.get("forced_decoder_ids") or config.get("forced_decoder_ids") or []
        latest = generation.get("max_initial_timestamp_index")
        return cls(
            start=start,
            end=_id("eos_token_id", end, vocab),
            # A timestamp at least must follow it.
            no_timestamps=_optional(generation, "no_timestamps_token_id", vocab - 1),
            previous=_previous(generation, vocab),
            latest=None if latest is None else _id("max_initial_timestamp_index", latest, vocab),
            lang_to_id={name.removeprefix("<|").removesuffix("|>"): i for name, i in languages.items()},
            task_to_id=tasks,
            forced=() if language or task else _forced(forced, vocab),
            language=_name("language", language),
            task=_name("task", task),
        )

    @property
    def first_timestamp(self) -> int | None:
        """0.00; what follows are later times."""
        return None if self.no_timestamps is None else self.no_timestamps + 1

    @property
    def no_speech(self) -> int | None:
        """What says at the start token's place that nobody speaks: it stands before ``no_timestamps``."""
        return self.no_timestamps - 1 if self.no_timestamps else None

    def asked(self, language: object, task: str | None) -> SpeechTokens:
        """Who asks for a language or a task does not want what an old config forces, unless the model has no choice."""
        return replace(self, forced=()) if self.lang_to_id and (language or task) else self

    def language_id(self, language: str | None) -> int | None:
        """The token of ``language``, or of the config's choice. None: it is to be detected, or there is none.

        Raises:
            ValueError: the model does not know it, or knows of no languages.
        """
        language = language or self.language
        if language is None:
            return self.forced[0] if self.forced and self.forced[0] in self.lang_to_id.values() else None
        if not self.lang_to_id:
            raise ValueError(
                f"language must be None for a model without lang_to_id in its generation config, got {language!r}; "
                f"it writes one language, or its config is too old: {_OLD}"
            )
        return self.lang_to_id[code_of(language, self.lang_to_id)]

    def task_id(self, task: str | None) -> int | None:
        """The token of ``task``, or of the config's choice. None: there is none.

        Raises:
            ValueError: the model does not know it.
        """
        task = task or self.task
        if task is not None and task in self.task_to_id:
            return self.task_to_id[task]
        if task not in (None, "transcribe") or (task is not None and self.task_to_id):
            known = ", ".join(self.task_to_id) or "transcribe"
            raise ValueError(f"task must be one that the model knows ({known}), got {task!r}; {_OLD} if it is too old")
        chosen = [i for i in self.forced if i in self.task_to_id.values()]
        return chosen[0] if chosen else self.task_to_id.get("transcribe")

    def prompt(self, language: int | None, task: int | None, timestamps: bool) -> list[int]:
        """The decoder's first inputs: start, language, task, and whether there will be timestamps."""
        if self.lang_to_id:
            tokens = [self.start, language, task]
        else:
            tokens = [self.start, *(i for i in self.forced if i != self.no_timestamps), task]
        made = [token for token in dict.fromkeys(tokens) if token is not None]
        return made if timestamps or self.no_timestamps is None else [*made, self.no_timestamps]


def _id(name: str, value: object, vocab: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab:
        raise ValueError(f"{name} must be a token id below {vocab}, got {value!r:.60}; correct generation_config.json")
    return value


def _optional(generation: Mapping[str, Any], name: str, vocab: int) -> int | None:
    return None if generation.get(name) is None else _id(name, generation[name], vocab)


def _table(generation: Mapping[str, Any], name: str, vocab: int) -> dict[str, int]:
    value = generation.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must map names to token ids, got {value!r:.60}; correct generation_config.json")
    return {key: _id(f"{name}[{key!r}]", token, vocab) for key, token in value.items()}


def _name(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a str, got {value!r:.60}; correct generation_config.json")
    return value


def _previous(generation: Mapping[str, Any], vocab: int) -> int | None:
    """Old configs do not name it, but suppress it, last but one."""
    if generation.get("prev_sot_token_id") is not None:
        return _id("prev_sot_token_id", generation["prev_sot_token_id"], vocab)
    suppressed = generation.get("suppress_tokens")
    if not isinstance(suppressed, list) or len(suppressed) < 2:
        return None
    return _id("suppress_tokens", suppressed[-2], vocab)


def _forced(pairs: object, vocab: int) -> tuple[int | None, ...]:
    """[[1, a], [2, b]] -> (a, b)."""
    wrong = ValueError(
        f"forced_decoder_ids must be [[1, token], [2, token], ...], got {pairs!r:.60}; correct generation_config.json"
    )
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise wrong
    if [place for place, _ in pairs] != list(range(1, len(pairs) + 1)):
        raise wrong
    return tuple(None if token is None else _id("forced_decoder_ids", token, vocab) for _, token in pairs)
