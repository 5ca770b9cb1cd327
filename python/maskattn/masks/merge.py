"""Two leaves of a kind as one: candidates for :mod:`maskattn.masks.simplify`, which checks each of them.

Where one of the two is a subset of the other there is no need for a rule: that one is enough is found by dropping.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from maskattn.masks.algebra import Not
from maskattn.masks.base import Mask
from maskattn.masks.block_sparse import BlockSparse
from maskattn.masks.causal import Causal
from maskattn.masks.dense import Dense
from maskattn.masks.documents import Documents
from maskattn.masks.first_tokens import FirstTokens
from maskattn.masks.global_tokens import GlobalTokens
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.padding import Padding
from maskattn.masks.parameters import per_sequence
from maskattn.masks.prefix_lm import PrefixLM
from maskattn.masks.query_padding import QueryPadding
from maskattn.masks.sliding_window import SlidingWindow


def merged(a: Mask, b: Mask, both: bool) -> Iterator[Mask]:
    """What may be ``a & b`` (``both``) or ``a | b`` as one leaf, for leaves and ``~`` of leaves that go together."""
    if isinstance(a, Not) and isinstance(b, Not):
        yield from (Not(mask) for mask in merged(a.term, b.term, not both))
    a, b = turned(a), turned(b)
    for rule in (_bands, _prefixes, _global_tokens, _documents, _arrays):
        mask = rule(a, b, both)
        if mask is not None:
            yield mask


def turned(mask: Mask) -> Mask:
    """``~leaf`` as a leaf, where an array says which pairs attend; else the mask as it is."""
    leaf = mask.term if isinstance(mask, Not) else None
    if isinstance(leaf, (Dense, KeyPadding, QueryPadding)):
        return type(leaf)(~leaf.keep)
    return BlockSparse(~leaf.blocks, leaf.size) if isinstance(leaf, BlockSparse) else mask


def _bands(a: Mask, b: Mask, both: bool) -> Mask | None:
    if not isinstance(a, (Causal, SlidingWindow)) or not isinstance(b, (Causal, SlidingWindow)):
        return None
    pairs = zip(*((None, 0) if isinstance(mask, Causal) else (mask.left, mask.right) for mask in (a, b)), strict=True)
    sides: list[int | None] = []
    for pair in pairs:
        bounds = [side for side in pair if side is not None]
        if both:
            sides.append(min(bounds, default=None))
        else:
            sides.append(max(bounds) if len(bounds) == 2 else None)
    return SlidingWindow(*sides)


def _prefixes(a: Mask, b: Mask, both: bool) -> Mask | None:
    """Keys up to a length, with what stands before the query or without."""
    kinds = (Causal, PrefixLM, Padding, FirstTokens)
    if not isinstance(a, kinds) or not isinstance(b, kinds):
        return None
    lengths = _parameter((np.minimum if both else np.maximum)(_lengths(a), _lengths(b)))
    left = [isinstance(mask, Padding) and mask.side == "left" for mask in (a, b)]
    triangle = [isinstance(mask, (Causal, PrefixLM)) for mask in (a, b)]
    if any(left):
        return Padding(lengths, "left") if all(left) else None
    if all(triangle) or (any(triangle) and not both):
        return PrefixLM(lengths)
    return None if any(triangle) else Padding(lengths)


def _lengths(mask: Causal | PrefixLM | Padding | FirstTokens) -> npt.NDArray[np.int64]:
    if isinstance(mask, Causal):
        return np.zeros(1, np.int64)
    return per_sequence(mask.n if isinstance(mask, FirstTokens) else mask.lengths)


def _parameter(lengths: npt.NDArray[np.int64]) -> int | tuple[int, ...]:
    return tuple(lengths.tolist()) if len(lengths) > 1 else int(lengths[0])


def _global_tokens(a: Mask, b: Mask, both: bool) -> Mask | None:
    if not isinstance(a, GlobalTokens) or not isinstance(b, GlobalTokens) or both:
        return None
    return GlobalTokens(tuple(sorted({*a.indices, *b.indices})))


def _documents(a: Mask, b: Mask, both: bool) -> Mask | None:
    """Documents of two packings at once: pairs of ids, numbered anew."""
    if not isinstance(a, Documents) or not isinstance(b, Documents) or not both:
        return None
    sequences = max(len(a.ids), len(b.ids))

    def pairs(*arrays: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        length = min(array.shape[1] for array in arrays)
        return np.stack([np.broadcast_to(array[:, :length], (sequences, length)) for array in arrays], axis=-1)

    assert a.kv_ids is not None
    assert b.kv_ids is not None
    queries, keys = pairs(a.ids, b.ids), pairs(a.kv_ids, b.kv_ids)
    if not queries.size or not keys.size:
        return None
    both_ids = np.concatenate([queries, keys], axis=1).reshape(-1, 2)
    numbers = np.unique(both_ids, axis=0, return_inverse=True)[1].reshape(sequences, -1)
    ids, kv_ids = np.split(numbers, [queries.shape[1]], axis=1)
    return Documents(ids) if np.array_equal(ids, kv_ids) else Documents(ids, kv_ids)


def _arrays(a: Mask, b: Mask, both: bool) -> Mask | None:
    fold = np.logical_and if both else np.logical_or
    if isinstance(a, Dense) and isinstance(b, Dense):
        return Dense(fold(a.keep, b.keep))
    for kind in (KeyPadding, QueryPadding):
        if isinstance(a, kind) and isinstance(b, kind):
            length = min(a.keep.shape[1], b.keep.shape[1])
            return kind(fold(a.keep[:, :length], b.keep[:, :length]))
    if isinstance(a, BlockSparse) and isinstance(b, BlockSparse) and a.size == b.size:
        rows, columns = (min(extents) for extents in zip(a.blocks.shape[2:], b.blocks.shape[2:], strict=True))
        return BlockSparse(fold(a.blocks[..., :rows, :columns], b.blocks[..., :rows, :columns]), a.size)
    return None
