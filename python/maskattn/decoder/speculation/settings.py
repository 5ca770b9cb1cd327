"""Which drafts the options ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.requests import Requests
from maskattn.decoder.rules import Rules
from maskattn.decoder.speculation.assistant import Assistant, Plan
from maskattn.decoder.speculation.drafts import Drafter
from maskattn.decoder.speculation.lookup import PromptLookup
from maskattn.decoder.speculation.page import Page

_SCHEDULES = {"constant": False, "heuristic": True, "heuristic_transient": True}


@dataclass(frozen=True)
class Speculation:
    """The options of speculative decoding.

    Attributes:
        lookup: ``prompt_lookup_num_tokens``; 0 with an assistant.
        ngram: ``max_matching_ngram_size``.
        branches: ``num_draft_branches``.
        assistant, requests, plan: ``assistant_model``, what it takes, and how it drafts; or None.
    """

    lookup: int
    ngram: int
    branches: int = 1
    assistant: Transformer | None = None
    requests: Requests | None = None
    plan: Plan | None = None

    @classmethod
    def read(cls, options: Options, model: Transformer) -> Speculation | None:
        """None where no drafts are asked for.

        Raises:
            TypeError, ValueError: an option is not as GenerationOptions says, or does not fit the model.
        """
        lookup, ngram = options.integer("prompt_lookup_num_tokens"), options.integer("max_matching_ngram_size", 1)
        branches = options.integer("num_draft_branches", 1) or 1
        assistant = options.get("assistant_model")
        fits = isinstance(getattr(assistant, "_forward", None), Transformer)
        plan = _plan(options, assistant._generation if fits else {}, branches)
        if assistant is None and not lookup:
            return None
        if (options.integer("num_beams", 1) or 1) > 1:
            raise options.wrong("num_beams", "1 with assistant_model or prompt_lookup_num_tokens")
        if assistant is None:
            return cls(lookup or 0, ngram or 2, branches)
        if not fits:
            raise options.wrong("assistant_model", "a maskattn.Model, as maskattn.load returns it", TypeError)
        if lookup:
            raise options.wrong("prompt_lookup_num_tokens", "None with an assistant_model")
        _check_kind(assistant._forward, model)
        return cls(0, ngram or 2, branches, assistant._forward, assistant._requests, plan)

    def check(self, sources: Any, prompts: Sequence[IntArray], prefixes: Sequence[FloatArray] | None) -> None:
        """Raises ValueError: the assistant can't read what the model reads."""
        if self.requests is None:
            return
        if prefixes is not None:
            raise ValueError(
                "prefix_embeddings must be None with an assistant_model, which has embeddings of its own, got some; "
                "pass prompt_lookup_num_tokens instead"
            )
        most, longest = self.requests.writes.sizes.positions, max(map(len, prompts), default=0)
        if most and longest > most:
            raise ValueError(
                f"assistant_model must have positions for prompts of {longest} tokens, got {most}; pass another one"
            )
        if self.requests.start is not None:
            self.requests.sequences("sources, for the assistant_model,", sources)

    def encode(self, sources: Sequence[Any]) -> Memory | None:
        """What the assistant reads of a batch's sources, if it has an encoder."""
        return None if self.assistant is None or self.assistant.encoder is None else self.assistant.encode(sources)

    def drafter(self, model: Transformer, page: Page, rules: Rules, memory: Memory | None) -> Drafter:
        """What drafts for a batch; ``memory``: what ``encode`` has given for it."""
        if self.assistant is None:
            return PromptLookup(page, self.lookup, self.ngram, self.branches)
        assert self.plan is not None
        return Assistant(self.assistant, model.vocab, page, rules, self.plan, memory)


def _plan(options: Options, generation: Any, branches: int) -> Plan:
    """What the call says, else the assistant's generation config."""
    own = Options(generation, {}, options.vocab)

    def source(name: str) -> Options:
        return options if options.asked(name) else own

    name = "num_assistant_tokens_schedule"
    schedule = source(name).get(name) or "constant"
    if not isinstance(schedule, str) or schedule not in _SCHEDULES:
        raise source(name).wrong(name, '"constant", "heuristic" or "heuristic_transient"')
    name = "assistant_confidence_threshold"
    threshold = source(name).number(name, "in [0, 1]", lambda x: 0 <= x <= 1)
    tokens = source("num_assistant_tokens").integer("num_assistant_tokens", 1)
    return Plan(tokens or 20, _SCHEDULES[schedule], 0.4 if threshold is None else threshold, branches)


def _check_kind(assistant: Transformer, model: Transformer) -> None:
    wanted = model.encoder is not None, model.decoder is not None
    if (assistant.encoder is not None, assistant.decoder is not None) != wanted:
        raise ValueError(
            f"assistant_model must have {'an encoder and a decoder' if wanted[0] else 'a decoder alone'}, as the model "
            f"has, got family {assistant.family.name}; pass a smaller model of the same kind"
        )
    if (
        model.encoder is None
        or assistant.encoder is None
        or not (model.encoder.sizes.mels or assistant.encoder.sizes.mels)
    ):
        return
    sizes, others = model.encoder.sizes, assistant.encoder.sizes
    if (others.mels, others.positions) != (sizes.mels, sizes.positions):
        raise ValueError(
            f"assistant_model must hear {sizes.mels} mels in {2 * sizes.positions} frames, as the model does, got "
            f"{others.mels} in {2 * others.positions}; pass a model of the same generation"
        )
