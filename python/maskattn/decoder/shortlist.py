"""A head that knows few tokens, for who knows beforehand which ones a text is made of."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from maskattn._core import PackedWeight
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.constrained_beams import read_constraints
from maskattn.decoder.heads import LanguageHead
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.projection import Linear


@dataclass(frozen=True, eq=False)
class ShortHead(LanguageHead):
    """A head whose map has the rows of ``tokens``, ascending; others of the ``vocab`` have scores of -inf."""

    tokens: IntArray
    vocab: int

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """As of any head."""
        short = super().__call__(hidden)
        scores = np.full((*short.shape[:-1], self.vocab), -np.inf, np.float32)
        scores[..., self.tokens] = short
        return scores

    def best(self, hidden: FloatArray) -> IntArray:
        """As of any head."""
        best: IntArray = super().best(hidden)
        return best if self.softcap else self.tokens[best]

    def most_probable(self, hidden: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """As of any head; where it knows fewer than ``count`` tokens, the others are any one, at -inf."""
        if self.softcap:
            return super().most_probable(hidden, count)
        known = min(count, len(self.tokens))
        log_probabilities, places = super().most_probable(hidden, known)
        rest = ((0, 0), (0, count - known))
        return (
            np.pad(log_probabilities, rest, constant_values=-np.inf),
            np.pad(self.tokens[places], rest, constant_values=int(self.tokens[0])),
        )


def read_shortlist(options: Options, limits: Sequence[int]) -> IntArray | None:
    """The tokens of ``shortlist``, end tokens and forced ones; None: all.

    Args:
        limits: the most new tokens of each sequence.

    Raises:
        TypeError, ValueError: they are no token ids, or too few for what other options ask for.
    """
    if options.get("shortlist") is None:
        return None
    if not (asked := options.ids("shortlist")):
        raise options.wrong("shortlist", "token ids, at least one")
    ends = set(options.ids("eos_token_id"))
    known = ends.union(asked, options.ids("forced_bos_token_id"), options.ids("forced_eos_token_id"))
    for name in ("json_schema", "regex", "grammar"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name} must come without a shortlist, which may lack what such a text must have, got both; leave one "
                "out"
            )
    for constraint in read_constraints(options):
        if not any(known.issuperset(phrase) for phrase in constraint.phrases):
            missing = sorted({*constraint.phrases[0]} - known)
            raise ValueError(
                f"shortlist must hold the tokens of force_words_ids or constraints, got one without {missing}; add them"
            )
    _check_enough(options, len(known - ends), len(ends), limits)
    return np.array(sorted(known))


def _check_enough(options: Options, going: int, ends: int, limits: Sequence[int]) -> None:
    """Raises ValueError: sequences of ``going`` tokens and an end token are not as many as must be written."""
    beams, wanted = options.integer("num_beams", 1) or 1, options.integer("num_return_sequences", 1) or 1
    if not going and (beams > 1 or options.integer("min_new_tokens") or options.integer("min_length")):
        raise ValueError(
            "shortlist must hold a token besides end tokens with num_beams, min_length or min_new_tokens, got none; "
            "add tokens"
        )
    if beams == 1:
        return
    for i, limit in enumerate(limits):
        there, whole = 0, 1
        for _ in range(limit):  # what ends here, and what goes on
            there, whole = there + whole * ends, whole * going
            if there + whole >= wanted:
                break
        if there + whole < wanted:
            raise ValueError(
                f"shortlist must hold enough tokens for num_return_sequences={wanted}, got {going} besides end tokens, "
                f"of which sources[{i}] can get {there + whole} sequences in {limit} tokens; add tokens, or ask for "
                "fewer"
            )


def with_shortlist(model: Transformer, tokens: IntArray) -> Transformer:
    """The same model, which scores ``tokens`` alone: the rows of a packed head are copied as they are.

    Args:
        tokens: ids, in any order.
    """
    head = model.head
    assert head is not None
    ids = np.unique(tokens)
    weight, bias = head.map.weight, None if head.map.bias is None else head.map.bias[ids]
    assert isinstance(weight, PackedWeight)
    short = copy(model)
    short.head = ShortHead(Linear(weight.take(ids), bias), head.scale, head.softcap, head.tied, ids, model.vocab)
    return short
