"""What the linter recognises in a bool array: bands, padding, and which of its two readings is the sensible one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskattn.masks.base import BoolArray


@dataclass(frozen=True)
class Band:
    """Row ``i`` sees the keys from ``i + first`` to ``i + last``, where they are real; None is unbounded."""

    first: int | None
    last: int | None
    real: BoolArray  # (n, kv_len)


@dataclass(frozen=True)
class Vote:
    """One reason to read True (1) as keep, or as ignore."""

    polarity: str
    certainty: str
    reason: str


def band_of(keep: BoolArray) -> Band | None:
    """The band that a stack (n, q_len, kv_len) of matrices is exactly, up to hidden keys; None if it is none."""
    ahead = offsets(keep)
    seen = ahead[keep.any(axis=0)]
    if seen.size == 0:
        return None
    first, last = int(seen.min()), int(seen.max())
    everything = np.ones((len(keep), keep.shape[-1]), np.bool_)
    for real in (everything, np.asarray(keep.any(axis=1), np.bool_)):  # keys that a band hides are not padding
        for low, high in ((None, None), (None, last), (first, None), (first, last)):
            inside = np.ones(ahead.shape, np.bool_)
            inside &= True if low is None else ahead >= low
            inside &= True if high is None else ahead <= high
            if np.array_equal(keep, inside & real[:, None, :]):
                return Band(low, high, real)
    return None


def is_triangle(keep: BoolArray) -> bool:
    """Whether the stack is a band with a border inside, and no key is padding."""
    band = band_of(keep)
    return band is not None and (band.first, band.last) != (None, None) and bool(band.real.all())


def offsets(keep: BoolArray) -> npt.NDArray[np.int64]:
    """key - row of every cell, (q_len, kv_len)."""
    return np.asarray(np.arange(keep.shape[-1]) - np.arange(keep.shape[-2])[:, None], np.int64)


def alignment_of(last: int, q_len: int, kv_len: int) -> str | None:
    """How a triangle whose rows end at key ``i + last`` is causal, if it is."""
    if q_len < 2 or kv_len < 2:
        return None
    if last == 0:
        return "square" if q_len == kv_len else "top-left"
    return "bottom-right" if last == kv_len - q_len else None


def causal_alignment(keep: BoolArray) -> str | None:
    """Whether no row sees past its own position, and some own position is seen, under one of the alignments."""
    seen = offsets(keep)[keep.any(axis=0)]
    hides = not keep.all()
    return alignment_of(int(seen.max()), *keep.shape[-2:]) if hides and seen.size else None


def padding_of(real: BoolArray) -> tuple[str, tuple[int, ...]] | None:
    """The padded side and the lengths, where every row (n, kv_len) is one run that touches the other side."""
    if real.all() or not real.any():
        return None
    lengths = tuple(int(row.sum()) for row in real)
    keys = np.arange(real.shape[-1])
    for side, expected in (
        ("right", keys < np.array(lengths)[:, None]),
        ("left", keys >= real.shape[-1] - np.array(lengths)[:, None]),
    ):
        if np.array_equal(real, expected):
            return side, lengths
    return None


def matrix_votes(ones: BoolArray) -> list[Vote]:
    """Reasons for either polarity in a stack of matrices with more than one row, the strongest first."""
    votes = []
    keep_causal, ignore_causal = causal_alignment(ones), causal_alignment(~ones)
    if (keep_causal is None) != (ignore_causal is None):
        polarity = "keep" if keep_causal else "ignore"
        votes.append(
            Vote(polarity, "certain", f"read so, no query sees a key after it ({keep_causal or ignore_causal})")
        )
    if ones.shape[-1] == ones.shape[-2]:
        own = np.diagonal(ones, axis1=-2, axis2=-1).mean()
        if own >= 0.75 or own <= 0.25:
            votes.append(Vote("keep" if own >= 0.75 else "ignore", "likely", "read so, queries see themselves"))
    return votes + row_votes(ones.reshape(-1, ones.shape[-1]))


def padding_votes(ones: BoolArray, numbers: bool) -> list[Vote]:
    """Reasons for either polarity in flags of keys, (n, kv_len), the strongest first."""
    votes = row_votes(ones)
    if numbers:
        votes.append(Vote("keep", "likely", "tokenizers write 1 = keep as integers"))
    padding = padding_of(ones)
    if padding is not None and padding[0] == "right":
        votes.append(Vote("keep", "likely", "read so, the padding is on the right"))
    return votes


def row_votes(ones: BoolArray) -> list[Vote]:
    all_one, all_zero = int(ones.all(axis=-1).sum()), int((~ones).all(axis=-1).sum())
    if bool(all_one) == bool(all_zero):
        return []
    polarity = "keep" if all_one else "ignore"
    return [Vote(polarity, "likely", f"read the other way, some rows would see nothing ({all_one or all_zero})")]


def decide(votes: list[Vote]) -> tuple[str, str]:
    """(polarity, certainty): the strongest vote's; a guess where an equally strong one contradicts it."""
    if not votes:
        return "unknown", "undecided"
    first = votes[0]
    against = any(vote.polarity != first.polarity and vote.certainty == first.certainty for vote in votes)
    return first.polarity, "a guess" if against else first.certainty
