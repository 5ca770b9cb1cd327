"""Sampling: what may be drawn, and the draw. Filters are ``transformers``' warpers; -inf is what can't be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.options import Options
from maskattn.decoder.processors import Processor, Step

#: Of how many tokens top_h measures the entropy.
_TOP_H_TOKENS = 100


def softmax(scores: FloatArray) -> FloatArray:
    """Along the last axis, float32."""
    weights: FloatArray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _filter(keep: Callable[[FloatArray], BoolArray]) -> Processor:
    """Keeps what ``keep(scores)`` marks, (batch, vocab)."""

    def process(step: Step, scores: FloatArray) -> FloatArray:
        scores[~keep(scores)] = -np.inf
        return scores

    return process


def _by_row(keep: Callable[[FloatArray], IntArray]) -> Processor:
    """Keeps the tokens that ``keep`` names of each row; it gets those that can be drawn, and gives indices of them."""

    def process(step: Step, scores: FloatArray) -> FloatArray:
        for row in scores:
            open_ = np.flatnonzero(row > -np.inf)
            kept = open_[keep(row[open_])] if open_.size else open_
            values = row[kept]
            row[:] = -np.inf
            row[kept] = values
        return scores

    return process


def temperature(options: Options) -> Processor | None:
    value = options.number("temperature", "a number above 0 (do_sample=False is the limit)", lambda x: x > 0)
    return None if value in (None, 1) else lambda step, scores: np.divide(scores, np.float32(value), out=scores)


def _least(options: Options) -> int:
    """How many tokens a filter leaves at least: with beams as many as an end token of each kind, and one to go on."""
    return 1 if (options.integer("num_beams", 1) or 1) == 1 else max(2, 1 + len(options.ids("eos_token_id")))


def _best(scores: FloatArray, k: int) -> BoolArray:
    """The ``k`` highest of each row, and what equals them."""
    place = max(scores.shape[1] - k, 0)
    kept: BoolArray = scores >= np.partition(scores, place, axis=1)[:, place, None]
    return kept


def top_k(options: Options) -> Processor | None:
    k = options.integer("top_k")
    if not k:
        return None
    kept = max(k, _least(options))
    return _filter(lambda scores: _best(scores, kept))


def top_p(options: Options) -> Processor | None:
    p = options.number("top_p", "in [0, 1]", lambda x: 0 <= x <= 1)
    if p in (None, 1):
        return None
    least = _least(options)

    def keep(scores: FloatArray) -> IntArray:
        order = np.argsort(scores, kind="stable")
        kept = np.cumsum(softmax(scores[order])) > np.float32(1 - p)
        kept[-least:] = True
        chosen: IntArray = order[kept]
        return chosen

    return _by_row(keep)


def min_p(options: Options) -> Processor | None:
    p, least = options.number("min_p", "in [0, 1]", lambda x: 0 <= x <= 1), _least(options)

    def keep(scores: FloatArray) -> BoolArray:
        weights = softmax(scores)
        return _at_least(scores, weights, np.float32(p) * weights.max(axis=1, keepdims=True), least)

    return None if p is None else _filter(keep)


def typical_p(options: Options) -> Processor | None:
    mass, least = options.number("typical_p", "in (0, 1]", lambda x: 0 < x <= 1), _least(options)
    if mass in (None, 1):
        return None

    def keep(scores: FloatArray) -> IntArray:
        weights = softmax(scores)
        information = -np.log(weights)
        distance = np.abs(information - np.nansum(weights * information))
        order = np.argsort(distance, kind="stable")
        count = max(int((np.cumsum(weights[order]) < np.float32(mass)).sum()), least - 1)
        furthest = distance[order[min(count, len(order) - 1)]]
        chosen: IntArray = order[distance[order] <= furthest]
        return chosen

    return _by_row(keep)


def epsilon_cutoff(options: Options) -> Processor | None:
    epsilon = options.number("epsilon_cutoff", "in [0, 1]", lambda x: 0 <= x <= 1)
    if not epsilon or epsilon == 1:
        return None
    least = _least(options)
    return _filter(lambda scores: _at_least(scores, softmax(scores), np.float32(epsilon), least))


def eta_cutoff(options: Options) -> Processor | None:
    epsilon = options.number("eta_cutoff", "in [0, 1]", lambda x: 0 <= x <= 1)
    if not epsilon or epsilon == 1:
        return None
    least = _least(options)

    def keep(scores: FloatArray) -> BoolArray:
        weights = softmax(scores)
        eta = np.minimum(np.float32(epsilon), np.sqrt(np.float32(epsilon)) * np.exp(-_entropy(weights)))
        return _at_least(scores, weights, eta[:, None], least)

    return _filter(keep)


def top_h(options: Options) -> Processor | None:
    share = options.number("top_h", "in (0, 1]", lambda x: 0 < x <= 1)

    def keep(scores: FloatArray) -> IntArray:
        order = np.argsort(-scores, kind="stable")[:_TOP_H_TOKENS]
        weights = softmax(scores[order])
        grown = np.cumsum(-weights * np.log(weights))
        kept = grown <= _entropy(weights) * np.float32(share)
        kept[0] = True
        chosen: IntArray = order[kept]
        return chosen

    return None if share is None else _by_row(keep)


def log_softmax(scores: FloatArray) -> FloatArray:
    """Along the last axis of (rows, vocab), in place."""
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores


def renormalize(options: Options) -> Processor | None:
    """``renormalize_logits``: the last of all, sampling or not."""
    return (lambda step, scores: log_softmax(scores)) if options.flag("renormalize_logits") else None


def draw(scores: FloatArray, streams: Sequence[np.random.Generator]) -> IntArray:
    """A token per row, by the inverse of its cumulative distribution, from a number of its own stream.

    Args:
        scores: shape (batch, vocab), processed, at least one above -inf in each row.
        streams: one per row; each gives one number.
    """
    tokens = np.empty(len(scores), np.int64)
    for i, (row, stream) in enumerate(zip(scores, streams, strict=True)):
        open_ = np.flatnonzero(row > -np.inf)
        mass = np.cumsum(softmax(row[open_]), dtype=np.float64)
        tokens[i] = open_[min(int(np.searchsorted(mass, stream.random() * mass[-1], "right")), len(open_) - 1)]
    return tokens


def draw_several(scores: FloatArray, count: int, stream: np.random.Generator) -> IntArray:
    """Indices of ``count`` scores, drawn one after the other without replacement with probabilities as their softmax.

    Independent Gumbel noise is added to the scores; their order is then that of the draws (arXiv:1903.06059). Indices
    of -inf come last, where too few others are there.

    Args:
        scores: shape (n,), float32.
    """
    open_ = np.flatnonzero(scores > -np.inf)
    keys = np.full(len(scores), -np.inf)
    keys[open_] = scores[open_] + stream.gumbel(size=len(open_))
    drawn = np.argpartition(-keys, count - 1)[:count]
    order: IntArray = drawn[np.argsort(-keys[drawn], kind="stable")]
    return order


def _at_least(scores: FloatArray, weights: FloatArray, bound: FloatArray | np.float32, least: int) -> BoolArray:
    """What is as probable as ``bound``, and the ``least`` most probable tokens in any case."""
    kept: BoolArray = (weights >= bound) | _best(scores, least)
    return kept


def _entropy(weights: FloatArray) -> FloatArray:
    entropy: FloatArray = -np.nansum(weights * np.log(weights), axis=-1)
    return entropy
