"""What a KV cache is, in plain Python: lists of tokens, copied whole where they branch. And caches to compare."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import maskattn
from maskattn import KVCache
from maskattn.cache import Layer
from maskattn.masks import Causal, KeyPadding
from strategies import Array, normal

Token = tuple[Array, ...]  # as stored: k and v (kv_heads, dim), and for int8 the scales of both (kv_heads,)


def as_stored(k: Array, v: Array, dtype: Any) -> Token:
    """One token's key and value, (kv_heads, dim), as a cache of ``dtype`` stores them."""
    if dtype != np.int8:
        return k.astype(dtype), v.astype(dtype)
    k_scales, v_scales = (np.abs(x).max(axis=-1) / np.float32(127) for x in (k, v))
    (k_int, v_int) = (
        np.rint(np.divide(x, s[:, None], out=np.zeros_like(x), where=s[:, None] > 0)).astype(np.int8)
        for x, s in ((k, k_scales), (v, v_scales))
    )
    return k_int, v_int, k_scales, v_scales


@dataclass
class SequenceModel:
    """One sequence in one layer; ``begin``: the first token that a ring still holds."""

    tokens: list[Token] = field(default_factory=list)
    begin: int = 0


@dataclass
class LayerModel:
    """One layer. ``window`` is None but for rings; ``drafts``: a copy of the sequences when the open draft began."""

    sequences: list[SequenceModel]
    page_size: int
    window: int | None
    draft: list[SequenceModel] | None = None

    def append(self, tokens: list[list[Token]]) -> None:
        for sequence, new in zip(self.sequences, tokens, strict=True):
            if new and self.draft is None:
                self._retire(sequence, len(sequence.tokens))
            sequence.tokens += new

    def can_truncate(self, lengths: list[int]) -> bool:
        return self.window is None or all(
            n == 0 or s.begin <= max(0, n - self.window) for s, n in zip(self.sequences, lengths, strict=True)
        )

    def truncate(self, lengths: list[int]) -> None:
        for sequence, n in zip(self.sequences, lengths, strict=True):
            del sequence.tokens[n:]
            sequence.begin = sequence.begin if n else 0

    def reorder(self, beams: list[int]) -> None:
        self.sequences = [copy.deepcopy(self.sequences[beam]) for beam in beams]

    def begin_draft(self, branches: list[int]) -> None:
        self.sequences = [copy.deepcopy(s) for s, n in zip(self.sequences, branches, strict=True) for _ in range(n)]
        self.draft = copy.deepcopy(self.sequences)

    def drafted(self) -> list[int]:
        assert self.draft is not None
        return [len(s.tokens) - len(old.tokens) for s, old in zip(self.sequences, self.draft, strict=True)]

    def end_draft(self, keep: list[int], rows: list[int]) -> None:
        """As if of each of the sequences ``rows`` the first ``keep`` drafted tokens had been appended at once."""
        assert self.draft is not None
        drafted = [self.sequences[row].tokens[len(self.draft[row].tokens) :] for row in rows]
        self.sequences, self.draft = [self.draft[row] for row in rows], None
        self.append([tokens[:n] for tokens, n in zip(drafted, keep, strict=True)])

    def lengths(self) -> list[int]:
        return [len(sequence.tokens) for sequence in self.sequences]

    def _retire(self, sequence: SequenceModel, length: int) -> None:
        """Whole pages before the last ``window`` keys go."""
        if self.window is not None:
            page = max(0, length - self.window) // self.page_size
            sequence.begin = max(sequence.begin, page * self.page_size)


def check_layer(layer: Layer, model: LayerModel) -> None:
    """Every way to read a layer gives the model's tokens, bit for bit."""
    np.testing.assert_array_equal(layer.lengths, np.array(model.lengths(), np.int64))
    np.testing.assert_array_equal(layer.begins, np.array([s.begin for s in model.sequences], np.int64))
    assert layer.kv_len == max(model.lengths(), default=0)
    pools = [layer.k_pool, layer.v_pool]
    if layer.k_scales is not None and layer.v_scales is not None:
        pools += [layer.k_scales, layer.v_scales]
    gathered = layer.arrays()
    for b, sequence in enumerate(model.sequences):
        positions = np.arange(sequence.begin, len(sequence.tokens))
        held = layer.tables[b, positions // layer.page_size % layer.tables.shape[1]]
        assert (held >= 0).all()
        assert set(layer.tables[b].tolist()) - {-1} == set(held.tolist())  # no page is kept for nothing
        want = [np.array(x) for x in zip(*sequence.tokens[sequence.begin :], strict=True)]
        for pool, array in zip(pools, want, strict=False):
            np.testing.assert_array_equal(pool[held, :, positions % layer.page_size], array)
        for array, got in zip(_values(want), gathered, strict=False):
            np.testing.assert_array_equal(got[b, :, positions], array)
        for got in gathered:
            assert not got[b, :, : sequence.begin].any()
            assert not got[b, :, len(sequence.tokens) :].any()
    check_attention(layer, *gathered)


def check_attention(layer: Layer, k: Array, v: Array) -> None:
    """attention() over the layer has the bits of attention() over its keys and values in arrays."""
    batch, kv_heads, kv_len, head_dim = k.shape
    dtype = np.float64 if k.dtype == np.float64 else np.float32
    q = np.linspace(-1, 1, batch * 2 * kv_heads * 2 * head_dim, dtype=dtype).reshape(batch, 2 * kv_heads, 2, head_dim)
    exists = np.arange(kv_len) >= layer.begins[:, None]
    mask = Causal() & KeyPadding(exists) if batch and kv_len else Causal()
    want = maskattn.attention(q, k, v, mask=mask, kv_lengths=layer.lengths)
    assert maskattn.attention(q, layer, mask=Causal()).tobytes() == want.tobytes()


def _values(stored: list[Array]) -> list[Array]:
    """int8 and scales as the numbers that they stand for."""
    return [x.astype(np.float32) * s[..., None] for x, s in zip(stored[:2], stored[2:], strict=False)] or stored


def check_pages(layers: list[Layer], arrays: list[Array] | None = None) -> None:
    """Of caches that share memory, one layer each: pages are counted right, and what no cache holds may be anything.

    Fills that memory with NaN, so that whoever reads it later is found out.

    Args:
        arrays: to be filled in place of the pages' own, where these are not the host's.
    """
    pages = layers[0]._pages
    named = np.concatenate([layer.tables[layer.tables >= 0] for layer in layers])
    np.testing.assert_array_equal(pages.references, np.bincount(named, minlength=len(pages.references)))
    assert sorted(pages._free) == sorted(set(range(pages._unused)) - set(named.tolist()))
    live = np.zeros((len(pages.references), layers[0].page_size), bool)
    for layer in layers:
        for b, (begin, end) in enumerate(zip(layer.begins.tolist(), layer.lengths.tolist(), strict=True)):
            positions = np.arange(begin, end)
            live[layer.tables[b, positions // layer.page_size % layer.tables.shape[1]], positions % layer.page_size] = (
                True
            )
    for array in pages.arrays if arrays is None else arrays:
        array.swapaxes(1, 2)[~live] = 99 if array.dtype == np.int8 else np.nan


def made(layers: int = 1, batch: int = 2, capacity: int = 500, **options: Any) -> KVCache:
    return KVCache(layers, batch, 2, capacity, 8, v_head_dim=6, **options)


def tokens(rng: np.random.Generator, n: int, batch: int = 2) -> tuple[Array, Array]:
    return normal(rng, batch, 2, n, 8), normal(rng, batch, 2, n, 6)


def state(cache: KVCache) -> list[Any]:
    """What a cache holds, and in how many pages: which ones, and how wide a ring's table is, is its own business."""
    return [
        [x.tolist() for x in (*layer.arrays(), layer.lengths, layer.begins, (layer.tables >= 0).sum(axis=1))]
        for layer in cache
    ]
