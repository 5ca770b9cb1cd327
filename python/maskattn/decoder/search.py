"""The ways to search, and which of them options ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from maskattn.decoder import beams, contrastive, dola, guidance
from maskattn.decoder.generate import Batch, Generated, generate
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.rules import OpenState, Rules, plain_state

#: Writes a batch: the sequences of each source, best first; of (batch, with_log_probabilities=...).
Search = Callable[..., list[list[Generated]]]
#: As a search, of (model, batch, rules, with_log_probabilities=...).
Way = Callable[..., list[list[Generated]]]


def _with_beams(options: Options) -> Way | None:
    rules = beams.BeamRules.read(options)
    return None if rules is None else partial(beams.search, beam_rules=rules)


def _contrastive(options: Options) -> Way | None:
    contrast = contrastive.Contrast.read(options)
    return None if contrast is None else partial(contrastive.search, contrast=contrast)


def _token_by_token(options: Options) -> Way:
    returned = options.integer("num_return_sequences", 1) or 1
    if returned > 1 and not options.flag("do_sample"):
        raise options.wrong("num_return_sequences", "at most num_beams, 1, without do_sample")
    return partial(_repeated, times=returned)


#: Each gives its way where the options ask for it; the first that does is taken, the order being that of transformers.
_WAYS: tuple[Callable[[Options], Way | None], ...] = (_with_beams, _contrastive, _token_by_token)
#: What is made of the model's scores, whatever the way.
_STATES: tuple[Callable[[Options, Transformer, Sequence[int] | None], OpenState | None], ...] = (
    dola.read,
    guidance.read,
)


def goes_token_by_token(options: Options) -> bool:
    """Whether every token that is chosen stays."""
    return all(find(options) is None for find in _WAYS if find is not _token_by_token)


def goes_plainly(options: Options, rules: Rules) -> bool:
    """Whether there is one sequence of each source, token by token, by the model's own scores."""
    returned = options.integer("num_return_sequences", 1) or 1
    return returned == 1 and goes_token_by_token(options) and rules.open_state is plain_state


def with_state(model: Transformer, options: Options, rules: Rules, limits: Sequence[int] | None = None) -> Rules:
    """Rules that know what is made of the model's scores, whatever the way.

    Args:
        limits: the most new tokens of each source, if they are known.

    Raises:
        TypeError, ValueError: an option is not as GenerationOptions says, or does not fit the others or the model.
    """
    for read in _STATES:
        if (open_state := read(options, model, limits)) is not None:
            rules = replace(rules, open_state=open_state)
    return rules


def find_search(
    model: Transformer, options: Options, rules: Rules, lengths: Sequence[int] = (), limits: Sequence[int] = ()
) -> Search:
    """The search that the options ask for, of a batch and ``with_log_probabilities``.

    Args:
        rules: with what is made of the model's scores, see ``with_state``.
        lengths, limits: of what stands before the new tokens of each source, and the most of these, if they are known.

    Raises:
        TypeError, ValueError: an option is not as GenerationOptions says, or does not fit the others or the model.
    """
    find, way = next((find, way) for find in _WAYS if (way := find(options)) is not None)
    if find is _contrastive:
        contrastive.check_room(model, lengths, limits, range(len(limits)))

    def search(batch: Batch, *, with_log_probabilities: bool = False) -> list[list[Generated]]:
        return way(model, batch, rules, with_log_probabilities=with_log_probabilities)

    return search


def _repeated(
    model: Transformer, batch: Batch, rules: Rules, times: int, *, with_log_probabilities: bool
) -> list[list[Generated]]:
    """Each source so many times, with other draws."""
    made = generate(model, _repeat(batch, times), rules, log_probabilities=with_log_probabilities)
    return [made[i : i + times] for i in range(0, len(made), times)]


def _repeat(batch: Batch, times: int) -> Batch:
    if times == 1:
        return batch
    rows = np.repeat(np.arange(len(batch.prompts)), times)

    def several(values: Any) -> Any:
        return None if values is None else [values[row] for row in rows]

    return Batch(
        several(batch.prompts),
        several(batch.limits),
        several(batch.numbers),
        None if batch.memory is None else batch.memory.reorder(rows),
        None if batch.prefix is None else batch.prefix.reorder(rows),
        several(batch.sources),
    )
