"""Timestamps as tokens: which may come next (arXiv:2212.04356, section 4.5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class TimestampRules:
    """A logits processor, the same as ``transformers``' ``WhisperTimeStampLogitsProcessor``.

    The text of a segment stands between two timestamps: ``<|0.00|> text <|2.40|><|2.40|> text <|4.00|>``. So timestamps
    come in pairs, but for the first and the last, and never decrease; and one comes next where all timestamps together
    are more probable than the most probable text token.

    Args:
        first: id of the timestamp 0.00; all later ids are timestamps too.
        no_timestamps, end: ids of ``<|notimestamps|>`` and of the end of the sequence.
        begin: how many columns of ids are prompts.
        latest: the highest timestamp that a sequence may begin with, counted from ``first``. None: any.
    """

    first: int
    no_timestamps: int
    end: int
    begin: int
    latest: int | None = None

    def __call__(self, ids: IntArray, scores: FloatArray) -> FloatArray:
        """(batch, length) and (batch, vocab) -> (batch, vocab), a copy with -inf where a token may not come next."""
        scores = scores.copy()
        scores[:, self.no_timestamps] = -np.inf
        new = ids[:, self.begin :]
        if not new.shape[1]:
            scores[:, : self.first] = -np.inf
            if self.latest is not None:
                scores[:, self.first + self.latest + 1 :] = -np.inf
            return scores
        is_time = new >= self.first
        after_time = is_time[:, -1]
        after_two = after_time & (is_time[:, -2] if new.shape[1] > 1 else True)  # alone, the first opens a segment
        closed = after_time & ~after_two
        scores[after_two, self.first :] = -np.inf
        scores[closed, : self.end] = -np.inf
        # The last timestamp may come again only to open the segment behind the one that it closed.
        for row, lowest in zip(scores, _last(new, is_time, self.first - 1) + 1 - closed, strict=True):
            row[self.first : lowest] = -np.inf
        times, text = scores[:, self.first :], scores[:, : self.first]
        text[log_sum_exp(times) > text.max(axis=1)] = -np.inf
        return scores


def log_sum_exp(scores: FloatArray) -> FloatArray:
    """(..., n) -> (...); -inf where all are."""
    most = scores.max(axis=-1, keepdims=True)
    most[np.isneginf(most)] = 0
    with np.errstate(divide="ignore"):
        sums: FloatArray = np.log(np.exp(scores - most).sum(axis=-1)) + most[..., 0]
    return sums


def _last(ids: IntArray, chosen: BoolArray, default: int) -> IntArray:
    """The last chosen id of each row, (batch, length) -> (batch,)."""
    place = ids.shape[1] - 1 - chosen[:, ::-1].argmax(axis=1)
    return np.where(chosen.any(axis=1), ids[np.arange(len(ids)), place], default)
