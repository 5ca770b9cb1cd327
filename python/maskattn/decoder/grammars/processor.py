"""The options ``json_schema``, ``regex`` and ``grammar``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.grammars.matching import Follower
from maskattn.decoder.grammars.vocabulary import Vocabulary, need
from maskattn.decoder.options import Options
from maskattn.decoder.processors import Processor, Step

_NAMES = ("json_schema", "regex", "grammar")


def grammar_processor(
    options: Options, vocabulary: Callable[[], Vocabulary], limits: Sequence[int]
) -> Processor | None:
    """A processor that allows what the grammar of the call allows next; None where none is asked for.

    Args:
        vocabulary: called only if it is needed.
        limits: the most new tokens of each sequence, by its number.

    Raises:
        TypeError, ValueError: an option is not as GenerationOptions says; there is no tokenizer, or no end token.
        ImportError: ``llguidance``, or the library that runs the tokenizer, is not installed.
    """
    asked = [name for name in _NAMES if options.get(name) is not None]
    if not asked:
        return None
    name = asked[0]
    if len(asked) > 1:
        raise options.wrong(asked[1], f"None with a {name}")
    if not (ends := list(options.ids("eos_token_id"))):
        raise ValueError(f"{name} needs an eos_token_id, which ends texts that are whole, got none; pass one")
    grammar = _READERS[name](options, need())
    try:
        known = vocabulary()
    except ValueError as error:
        raise ValueError(f"{name} needs a tokenizer: {error}") from error
    _check(name, grammar, known)
    # Greedy search takes the best one, whatever else is allowed.
    greedy = (
        not options.flag("do_sample") and options.get("num_beams") in (None, 1) and not options.get("penalty_alpha")
    )
    follower = Follower(known, grammar, **{"tried": 1} if greedy and not options.functions("logits_processor") else {})
    # What is forced behind a single start token, such as a language, is no part of the text; nor is a forced end.
    forced_first, forced_last = bool(options.ids("forced_bos_token_id")), bool(options.ids("forced_eos_token_id"))

    def process(step: Step, scores: FloatArray) -> FloatArray:
        for row, own in enumerate(scores):
            before = step.begin + int(forced_first and step.lengths[row] - step.new == 1)
            if step.tokens.shape[1] < before:
                continue
            left = limits[int(step.sequences[row])] - step.new - forced_last
            ids = tuple(step.tokens[row, before:].tolist())
            allowed, whole = follower.allowed(ids, left, own)
            allowed[ends] = whole
            # Where all that is allowed has been forbidden by what came before, the constraint holds all the same.
            own[:] = np.where(allowed, own if (own[allowed] > -np.inf).any() else np.float32(0), -np.inf)
        return scores

    return process


def _json_schema(options: Options, library: Any) -> str:
    schema = options.get("json_schema")
    # Any white space anywhere, llguidance's default, is what a model that is not sure of itself goes on writing.
    wanted = "a JSON schema: a dict, its text, or a pydantic model"
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, str | Mapping):
        raise options.wrong("json_schema", wanted, TypeError)
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if not isinstance(json.loads(text), dict):
            raise ValueError("not an object")
        return str(library.LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": " ?"}))
    except (TypeError, ValueError) as error:
        raise options.wrong("json_schema", f"{wanted} ({error})") from error


def _regex(options: Options, library: Any) -> str:
    return str(library.LLMatcher.grammar_from_regex(_text(options, "regex", "a regular expression, a str")))


def _grammar(options: Options, library: Any) -> str:
    text = _text(options, "grammar", "a grammar in Lark's syntax or in GBNF, a str")
    conversion = import_module("llguidance.gbnf_to_lark")
    try:
        return str(library.LLMatcher.grammar_from_lark(conversion.any_to_lark(text)))
    except conversion.GbnfToLarkError as error:
        raise options.wrong("grammar", f"a grammar in Lark's syntax or in GBNF ({error})") from error


def _text(options: Options, name: str, wanted: str) -> str:
    value = options.get(name)
    if not isinstance(value, str):
        raise options.wrong(name, wanted, TypeError)
    return value


def _check(name: str, grammar: str, vocabulary: Vocabulary) -> None:
    """Raises ValueError: llguidance can't follow it."""
    failed, messages = need().LLMatcher.validate_grammar_with_warnings(grammar, vocabulary.core)
    if failed:
        raise ValueError(f"{name} must be one that llguidance can follow, got: {messages[0].strip()[:400]}")


_READERS: dict[str, Callable[[Options, Any], str]] = {"json_schema": _json_schema, "regex": _regex, "grammar": _grammar}
