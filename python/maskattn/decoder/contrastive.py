"""Contrastive search: a probable token whose state is unlike those before it (arXiv:2202.06417, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.beams import add_log_probabilities
from maskattn.decoder.ends import Ends
from maskattn.decoder.generate import Batch, Generated, check_open
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import softmax


@dataclass(frozen=True)
class Contrast:
    """The options of contrastive search: ``penalty_alpha``, and how many candidates there are, ``top_k``."""

    alpha: float
    candidates: int

    @classmethod
    def read(cls, options: Options) -> Contrast | None:
        """None for another search. Raises TypeError, ValueError: an option is not as GenerationOptions says."""
        alpha = options.number("penalty_alpha", "in [0, 1]", lambda x: 0 <= x <= 1)
        k = min(options.integer("top_k") or 0, options.vocab)
        if not alpha or k < 2 or options.flag("do_sample"):
            return None
        if (options.integer("num_return_sequences", 1) or 1) > 1:
            raise options.wrong("num_return_sequences", "1 with penalty_alpha")
        return cls(alpha, k)


@dataclass
class Text:
    """A sequence that is written.

    Attributes:
        row: of the batch.
        context: shape (room, width), directions of the states of all its tokens so far, of which there are ``length``.
        written: new tokens.
    """

    row: int
    context: FloatArray
    length: int
    written: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, row: int, states: FloatArray, limit: int) -> Text:
        """Args: states: shape (length, width), of its prompt."""
        context = np.zeros((len(states) + limit, states.shape[1]), np.float32)
        context[: len(states)] = _directions(states)
        return cls(row, context, len(states))

    def choose(self, contrast: Contrast, tokens: IntArray, probabilities: FloatArray, states: FloatArray) -> int:
        """Write one of ``tokens`` (k,), whose states are (k, width); says which."""
        directions = _directions(states)
        similarity = (self.context[: self.length] @ directions.T).max(axis=0)
        alpha = np.float32(contrast.alpha)
        values = (1 - alpha) * probabilities - alpha * similarity
        best = int(np.where(probabilities > 0, values, -np.inf).argmax())  # some may be forbidden
        self.context[self.length] = directions[best]
        self.length += 1
        self.written.append(int(tokens[best]))
        return best


def search(
    model: Transformer, batch: Batch, rules: Rules, contrast: Contrast, *, with_log_probabilities: bool = False
) -> list[list[Generated]]:
    """One sequence of each source; arguments as of ``generate``.

    Raises:
        ValueError: the last token has no position to be read at.
    """
    before = [0] * len(batch.prompts) if batch.prefix is None else batch.prefix.lengths
    lengths = [n + len(prompt) for n, prompt in zip(before, batch.prompts, strict=True)]
    check_room(model, lengths, batch.limits, batch.numbers)
    ends, k = Ends(batch, rules), contrast.candidates
    state = rules.open_state(model, batch, branches=True)
    texts = [Text.start(row, state.states[row, :length], batch.limits[row]) for row, length in enumerate(lengths)]
    # Each text has k rows of the state, one for each candidate; the same, until they read it.
    state.reorder(np.repeat(np.arange(len(texts)), k))
    active = texts
    while active:
        rows = np.arange(len(active)) * k
        scores = state.contrast(model.logits(state.hidden[rows]), rows)
        if rules.processors:
            scores = rules.process(ends.step(active, np.array([text.written for text in active], np.int64)), scores)
            check_open(scores, False, batch, np.array([text.row for text in active]))
        weights = softmax(scores)
        tokens = _most_probable(weights, k)
        probabilities = np.take_along_axis(weights, tokens, axis=1)
        state.append(tokens.reshape(-1))
        states = state.hidden.reshape(len(active), k, -1)
        best = [text.choose(contrast, *of) for text, *of in zip(active, tokens, probabilities, states, strict=True)]
        stay = [i for i, text in enumerate(active) if not _is_whole(text, batch, ends)]
        if stay:
            order = np.repeat([i * k + best[i] for i in stay], k)
            state.reorder(order, within=len(stay) == len(active))
        active = [active[i] for i in stay]
    made = [[Generated(text.written)] for text in texts]
    if with_log_probabilities:
        add_log_probabilities(model, batch, made)
    return made


def _is_whole(text: Text, batch: Batch, ends: Ends) -> bool:
    return len(text.written) >= batch.limits[text.row] or bool(ends(text, np.array([text.written]))[0])


def _directions(states: FloatArray) -> FloatArray:
    """Of length 1, along the last axis."""
    directions: FloatArray = states / np.linalg.norm(states, axis=-1, keepdims=True)
    return directions


def _most_probable(weights: FloatArray, k: int) -> IntArray:
    """(batch, vocab) -> (batch, k), the most probable first."""
    found = np.argpartition(-weights, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(weights, found, axis=1), axis=1, kind="stable")
    tokens: IntArray = np.take_along_axis(found, order, axis=1)
    return tokens


def check_room(model: Transformer, lengths: Sequence[int], limits: Sequence[int], numbers: Sequence[int]) -> None:
    """Raises ValueError: a last token has no position to be read at.

    Args:
        lengths: of what stands before the new tokens of each source; limits: the most of these.
        numbers: of the sources.
    """
    assert model.decoder is not None
    most = model.decoder.sizes.positions
    for number, length, limit in zip(numbers, lengths, limits, strict=True):
        if most and length + limit > most:
            raise ValueError(
                f"max_new_tokens must be at most {most - length} for sources[{number}] with penalty_alpha, got "
                f"{limit}; candidates are read before one is chosen, and the model has {most} positions"
            )
