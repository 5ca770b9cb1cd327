"""What a generation config says of languages, tasks and times, and the prompt that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskattn.decoder.rules import integer_of
from maskattn.decoder.transcription.languages import code_of


@dataclass(frozen=True)
class SpeechTokens:
    """Ids of the tokens that steer a model of speech, under their names in generation_config.json.

    ``start``: the decoder's first token. ``lang_to_id``: by code, such as ``en``; empty for a model of one language.
    ``task_to_id``: ``transcribe``, ``translate``; empty for a model of one language. ``forced``: what an older config
    forces behind the start token; None stands for a language to be detected.
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
        multilingual = generation.get("is_multilingual", True)
        languages = _ids(generation, "lang_to_id", vocab) if multilingual else {}
        end = generation.get("eos_token_id")
        if isinstance(end, list) and len(end) == 1:
            end = end[0]
        return cls(
            start=start,
            end=_id("eos_token_id", end, vocab),
            no_timestamps=_optional(generation, "no_timestamps_token_id", vocab - 1),
            previous=_previous(generation, vocab),
            latest=integer_of(generation, "max_initial_timestamp_index"),
            lang_to_id={name.removeprefix("<|").removesuffix("|>"): i for name, i in languages.items()},
            task_to_id=_ids(generation, "task_to_id", vocab) if multilingual else {},
            forced=_forced(generation, config, vocab),
            language=generation.get("language") if multilingual else None,
            task=generation.get("task") if multilingual else None,
        )

    @property
    def first_timestamp(self) -> int | None:
        """Of 0.00; what follows are later times."""
        return None if self.no_timestamps is None else self.no_timestamps + 1

    def language_token(self, language: str | None) -> int | None:
        """The token of ``language``, else that of the config; None: it is to be detected, or there are none.

        Raises:
            ValueError: the model does not know it, or knows no languages.
        """
        language = self.language if language is None else language
        if language is None:
            return self.forced[0] if self.forced and self.task is None and self._is_language(self.forced[0]) else None
        if not self.lang_to_id:
            raise ValueError(
                f"language must be None for a model without lang_to_id in its generation config, got {language!r}; "
                "it writes one language, or its generation_config.json is too old: take that of the original model"
            )
        return self.lang_to_id[code_of(language, self.lang_to_id)]
