"""Masks as the spans of keys that each row of a call sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskattn import masks
from maskattn.decoder.arrays import BoolArray, IntArray
from maskattn.masks.algebra import All, Any

#: Past all keys.
_END = np.iinfo(np.int32).max
Interval = tuple[IntArray, IntArray]


def spans(mask: masks.Mask, stored: IntArray, counts: IntArray) -> npt.NDArray[np.int32]:
    """Of rows that stand behind ``stored`` (batch,) keys, ``counts`` (batch,) of each sequence.

    Returns:
        shape (batch, largest count, spans of a row, 2): begin and end, ascending; (0, 0) where there is none, as for
        rows past a sequence's count.

    Raises:
        NotImplementedError: heads see different keys.
    """
    steps = np.arange(counts.max(initial=0))
    real, lengths = steps < counts[:, None], (stored + counts)[:, None]
    found = _interval(mask, stored[:, None] + steps)
    if found is None:
        return _runs(_dense(mask, stored, counts) & real[..., None])
    begin, end = np.maximum(found[0], 0), np.minimum(found[1], lengths)
    some = real & (begin < end)
    return np.stack([np.where(some, begin, 0), np.where(some, end, 0)], axis=-1).astype(np.int32)[:, :, None]


def _interval(mask: masks.Mask, positions: IntArray) -> Interval | None:
    """Where the keys that queries at ``positions`` (batch, n) see begin and end, if they are always neighbours."""
    first, last = np.zeros_like(positions), np.full_like(positions, _END)
    if isinstance(mask, masks.Full):
        return first, last
    if isinstance(mask, masks.Causal):
        return first, positions + 1
    if isinstance(mask, masks.SlidingWindow):
        begin = first if mask.left is None else positions - mask.left
        return begin, last if mask.right is None else positions + mask.right + 1
    if isinstance(mask, masks.Padding) and mask.side == "right":
        return first, np.broadcast_to(np.reshape(mask.lengths, (-1, 1)), positions.shape)
    if not isinstance(mask, All | Any):
        return None
    parts = [_interval(term, positions) for term in mask.terms]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    begins, ends = (np.stack(bounds) for bounds in zip(*known, strict=True))
    if isinstance(mask, All):
        return begins.max(axis=0), ends.min(axis=0)
    return (first, ends.max(axis=0)) if (begins <= 0).all() else None


def _dense(mask: masks.Mask, stored: IntArray, counts: IntArray) -> BoolArray:
    """What the definition says, (batch, n, keys)."""
    lengths = stored + counts
    seen = mask.to_bool(
        int(counts.max(initial=0)),
        int(lengths.max(initial=0)),
        batch=len(counts),
        q_offset=stored,
        kv_lengths=lengths,
    )
    if seen.shape[1] != 1:
        raise NotImplementedError(
            f'device="cuda" needs masks that are the same for all heads, got {mask!r:.80}; load on the CPU'
        )
    return np.broadcast_to(seen[:, 0], (len(counts), *seen.shape[2:]))


def _runs(seen: BoolArray) -> npt.NDArray[np.int32]:
    """(batch, n, keys) as spans (batch, n, most of a row, 2)."""
    edges = np.diff(seen.astype(np.int8), axis=-1, prepend=0, append=0)
    begins, ends = edges == 1, edges == -1
    made = np.zeros((*seen.shape[:2], max(int(begins.sum(axis=-1).max(initial=0)), 1), 2), np.int32)
    for side, there in enumerate((begins, ends)):
        b, i, key = np.nonzero(there)
        made[b, i, (there.cumsum(axis=-1) - 1)[b, i, key], side] = key
    return made
