"""What the past of a sequence does to the scores of its next token: one function per option, in float32.

Each ``make`` function takes the options and gives a processor, or None where its option is off. Formulas and edge cases
are those of the logits processors of Hugging Face ``transformers``, with two differences that only ragged batches show:
what stands in front of a shorter prompt is no token, and each sequence counts its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.forbidding import Forbid, Force, Tokens
from maskattn.decoder.options import LogitsProcessor, Options

#: Fills the columns before a prompt that is shorter than others of its batch.
NO_TOKEN = -1


@dataclass(frozen=True)
class Step:
    """The sequences of a batch that wait for their next token.

    Attributes:
        tokens: shape (batch, length), decoder inputs so far: the start token or a prompt, and what has been written.
            Prompts that are shorter than others have ``NO_TOKEN`` before them.
        begin: the column of the first new token.
        last: shape (batch,), bool: no further token will follow this one.
        sequences: shape (batch,), their numbers in the call.
        sources: the encoder's token ids of each; None where it reads none.
        rivals: of each the tokens that earlier groups of its source's beams have just taken; None: there are no groups.
    """

    tokens: IntArray
    begin: int
    last: BoolArray
    sequences: IntArray
    sources: Sequence[IntArray] | None = None
    rivals: Sequence[IntArray] | None = None

    @cached_property
    def lengths(self) -> IntArray:
        """Shape (batch,): the tokens of each sequence, its prompt among them."""
        lengths: IntArray = self.tokens.shape[1] - (self.tokens[:, : self.begin] == NO_TOKEN).sum(axis=1)
        return lengths

    @property
    def new(self) -> int:
        """How many tokens have been written."""
        return int(self.tokens.shape[1]) - self.begin

    def own(self, row: int) -> IntArray:
        """The tokens of one sequence."""
        return self.tokens[row, self.tokens.shape[1] - self.lengths[row] :]


#: Takes scores (batch, vocab), which it may change in place, and gives those with which it goes on.
Processor = Callable[[Step, FloatArray], FloatArray]


def _fitting(value: float) -> bool:
    return value > 0


def diversity_penalty(options: Options) -> Processor | None:
    penalty = options.number("diversity_penalty", "a number of at least 0", lambda x: x >= 0)
    if not penalty:
        return None

    def process(step: Step, scores: FloatArray) -> FloatArray:
        for row, taken in zip(scores, step.rivals or (), strict=False):
            row -= np.float32(penalty) * np.bincount(taken, minlength=len(row)).astype(np.float32)
        return scores

    return process


def repetition_penalty(options: Options) -> Processor | None:
    penalty = options.number("repetition_penalty", "a number above 0", _fitting)
    if penalty in (None, 1):
        return None
    return lambda step, scores: _penalize(scores, [step.own(row) for row in range(len(scores))], np.float32(penalty))


def encoder_repetition_penalty(options: Options) -> Processor | None:
    penalty = options.number("encoder_repetition_penalty", "a number above 0", _fitting)
    if penalty in (None, 1):
        return None

    def process(step: Step, scores: FloatArray) -> FloatArray:
        return scores if step.sources is None else _penalize(scores, step.sources, np.float32(1 / penalty))

    return process


def _penalize(scores: FloatArray, tokens: Sequence[IntArray], penalty: np.float32) -> FloatArray:
    for row, ids in zip(scores, tokens, strict=True):
        found = row[ids]
        row[ids] = np.where(found < 0, found * penalty, found / penalty)
    return scores


def no_repeat_ngrams(options: Options) -> Processor | None:
    size = options.integer("no_repeat_ngram_size")
    return _forbid_ngrams(size, lambda step, row: step.own(row)) if size else None


def encoder_no_repeat_ngrams(options: Options) -> Processor | None:
    size = options.integer("encoder_no_repeat_ngram_size")

    def source(step: Step, row: int) -> IntArray:
        return np.zeros(0, np.int64) if step.sources is None else step.sources[row]

    return _forbid_ngrams(size, source) if size else None


def _forbid_ngrams(size: int, text: Callable[[Step, int], IntArray]) -> Processor:
    """Forbids what would complete a sequence of ``size`` tokens that stands in ``text`` of a row."""

    def tokens(step: Step, row: int) -> Tokens:
        past, where = step.own(row), text(step, row)
        if len(past) < size - 1 or len(where) < size:
            return ()
        ngrams = np.lib.stride_tricks.sliding_window_view(where, size)
        begun = past[len(past) - (size - 1) :]
        complete: IntArray = ngrams[(ngrams[:, :-1] == begun).all(axis=1), -1]
        return complete

    return Forbid(lambda step: [tokens(step, row) for row in range(len(step.tokens))])


def sequence_bias(options: Options) -> Processor | None:
    value = options.get("sequence_bias")
    if not value:
        return None
    pairs = list(value.items()) if isinstance(value, dict) else options.items("sequence_bias", "a list of [ids, bias]")
    biases: list[tuple[tuple[int, ...], np.float32]] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], int | float) or not pair[0]:
            raise options.wrong("sequence_bias", "token ids and a number for each, as {(3, 1): 2.0} or [[[3, 1], 2.0]]")
        biases.append((options.token_ids("sequence_bias", pair[0]), np.float32(pair[1])))

    def process(step: Step, scores: FloatArray) -> FloatArray:
        for ids, bias in biases:
            scores[_have_begun(step, ids), ids[-1]] += bias
        return scores

    return process


def bad_words(options: Options) -> Processor | None:
    words = [options.token_ids("bad_words_ids", word) for word in options.items("bad_words_ids", "lists of token ids")]
    if not all(words):
        raise options.wrong("bad_words_ids", "lists of token ids, none empty")
    # The end of the sequence can't be forbidden: transformers leaves it out as well.
    ends = {(token,) for token in options.ids("eos_token_id")}
    words = [word for word in words if word not in ends]
    alone, longer = [word[0] for word in words if len(word) == 1], [word for word in words if len(word) > 1]

    def tokens(step: Step) -> list[list[int]]:
        found = [list(alone) for _ in step.tokens]
        for ids in longer:
            for row in np.flatnonzero(_have_begun(step, ids)):
                found[row].append(ids[-1])
        return found

    return Forbid(tokens) if words else None


def _have_begun(step: Step, ids: tuple[int, ...]) -> BoolArray:
    """Shape (batch,): which sequences end with all of ``ids`` but the last."""
    before = ids[:-1]
    if len(before) > step.tokens.shape[1]:
        return np.zeros(len(step.tokens), np.bool_)
    begun: BoolArray = (step.tokens[:, step.tokens.shape[1] - len(before) :] == np.array(before, np.int64)).all(axis=1)
    return begun


def min_length(options: Options) -> Processor | None:
    least, new, ends = options.integer("min_length"), options.integer("min_new_tokens"), options.ids("eos_token_id")
    if not ends or not (least or new):
        return None

    def tokens(step: Step) -> list[tuple[int, ...]]:
        # As in transformers, min_new_tokens overrides min_length.
        early = step.lengths < (least or 0) if new is None else np.full(len(step.tokens), step.new < new)
        return [ends if row else () for row in early]

    return Forbid(tokens)


def prefix_allowed(options: Options) -> Processor | None:
    function = options.get("prefix_allowed_tokens_fn")
    if function is None:
        return None
    if not callable(function):
        raise options.wrong("prefix_allowed_tokens_fn", "a function of a sequence's number and its ids", TypeError)

    def process(step: Step, scores: FloatArray) -> FloatArray:
        for row, own in enumerate(scores):
            sequence = int(step.sequences[row])
            allowed = list(function(sequence, step.own(row)))
            if not allowed:
                raise ValueError(
                    f"prefix_allowed_tokens_fn must allow at least one token, got none for sources[{sequence}]; "
                    "let it allow the end token"
                )
            options.token_ids("prefix_allowed_tokens_fn", allowed)
            mask = np.full_like(own, -np.inf)
            mask[allowed] = 0
            # Where all that is allowed has been forbidden by what came before, the constraint holds all the same.
            own[:] = own + mask if (own[allowed] > -np.inf).any() else mask
        return scores

    return process


def forced_bos(options: Options) -> Processor | None:
    token = options.ids("forced_bos_token_id")[:1]
    return Force(lambda step: np.equal(step.lengths, 1), token) if token else None


def forced_eos(options: Options) -> Processor | None:
    tokens = options.ids("forced_eos_token_id")
    return Force(lambda step: step.last, tokens) if tokens else None


def finite(options: Options) -> Processor | None:
    if not options.flag("remove_invalid_values"):
        return None
    return lambda step, scores: np.nan_to_num(scores, copy=False)


def growing_end(options: Options) -> Processor | None:
    pair, ends = options.items("exponential_decay_length_penalty", "(start, factor)"), list(options.ids("eos_token_id"))
    if not pair:
        return None
    if len(pair) != 2 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in pair) or not ends:
        raise options.wrong("exponential_decay_length_penalty", "(start, factor), two numbers, with an eos_token_id")
    start, factor = pair

    def process(step: Step, scores: FloatArray) -> FloatArray:
        if step.new > start:
            found = scores[:, ends]
            grown = np.abs(found) * np.float32(factor ** (step.new - start) - 1)
            scores[:, ends] = found + np.where(np.isfinite(found), grown, np.float32(0))
        return scores

    return process


def suppressed(options: Options) -> Processor | None:
    tokens = options.ids("suppress_tokens")
    return Forbid(lambda step: [tokens] * len(step.tokens)) if tokens else None


def suppressed_at_begin(options: Options) -> Processor | None:
    tokens, forced = options.ids("begin_suppress_tokens"), int(bool(options.ids("forced_bos_token_id")))

    def at_begin(step: Step) -> list[tuple[int, ...]]:
        # The first token that is not forced.
        first = np.where(step.lengths - step.new == 1, forced, 0)
        return [tokens if row else () for row in first == step.new]

    return Forbid(at_begin) if tokens else None


def own_function(function: LogitsProcessor) -> Processor:
    """A user's function, whose result is checked."""

    def process(step: Step, scores: FloatArray) -> FloatArray:
        got = function(step.tokens, scores)
        if not isinstance(got, np.ndarray) or got.dtype.kind != "f" or got.shape != scores.shape:
            found = f"{got.dtype} {got.shape}" if isinstance(got, np.ndarray) else type(got).__name__
            raise TypeError(
                f"logits_processor must return a float array {scores.shape}, got {found}; return the scores it got"
            )
        return np.asarray(got, np.float32)

    return process
