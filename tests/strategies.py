"""Hypothesis strategies: lengths, geometries, mask expressions, and whole attention problems."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from maskattn.masks import (
    BlockDiffusion,
    BlockSparse,
    Causal,
    Chunked,
    Dense,
    Dilated,
    Documents,
    FirstTokens,
    Full,
    GlobalTokens,
    KeyPadding,
    Mask,
    Neighborhood,
    Padding,
    PrefixLM,
    QueryPadding,
    SlidingWindow,
    Tree,
)

Array = npt.NDArray[Any]
PerSequence = int | list[int] | None

# Small ones, and those on either side of a word of bits (64) and of a segment of keys (256).
lengths = st.one_of(st.integers(0, 12), st.sampled_from([63, 64, 65, 127, 255, 256, 257, 300, 520]))
seeds = st.integers(0, 2**32 - 1)


def normal(rng: np.random.Generator, *shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    return rng.standard_normal(shape).astype(dtype)


@dataclass(frozen=True)
class Geometry:
    """Where a mask is used; the arguments of ``Mask.plan``."""

    q_len: int
    kv_len: int
    batch: int = 1
    heads: int = 1
    q_offset: PerSequence = None
    kv_lengths: PerSequence = None

    def options(self) -> dict[str, Any]:
        return {"batch": self.batch, "heads": self.heads, "q_offset": self.q_offset, "kv_lengths": self.kv_lengths}

    def last_position(self) -> int:
        """The largest position of a query."""
        kv_lengths = self.kv_len if self.kv_lengths is None else np.asarray(self.kv_lengths)
        offsets = kv_lengths - self.q_len if self.q_offset is None else np.asarray(self.q_offset)
        return int(np.max(offsets)) + self.q_len - 1


def per_sequence(batch: int, low: int, high: int) -> st.SearchStrategy[Any]:
    """One integer, or a list of one per sequence."""
    value = st.integers(low, high)
    return st.one_of(value, st.lists(value, min_size=batch, max_size=batch))


@st.composite
def geometries(draw: st.DrawFn, batch: int | None = None, heads: int | None = None) -> Geometry:
    batch = draw(st.integers(1, 3)) if batch is None else batch
    heads = draw(st.integers(1, 3)) if heads is None else heads
    kv_len = draw(lengths)
    q_len = draw(lengths if batch * heads <= 4 else st.integers(0, 20))
    return Geometry(
        q_len=q_len,
        kv_len=kv_len,
        batch=batch,
        heads=heads,
        q_offset=draw(st.none() | per_sequence(batch, -5, kv_len + 5)),
        kv_lengths=draw(st.none() | per_sequence(batch, 0, kv_len)),
    )


def bools(seed: int, *shape: int) -> npt.NDArray[np.bool_]:
    """Noise in some rows and long runs in others, as masks have them."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0.03, 0.5, 0.97], size=(*shape[:-1], 1))
    return rng.random(shape) < density


@st.composite
def dense(draw: st.DrawFn, g: Geometry) -> Dense:
    extents = [draw(st.sampled_from([1, n])) for n in (g.batch, g.heads, g.q_len, g.kv_len)]
    dropped = draw(st.integers(0, next((i for i, n in enumerate(extents[:3]) if n != 1), 3)))
    return Dense(bools(draw(seeds), *extents[dropped:]))


@st.composite
def key_padding(draw: st.DrawFn, g: Geometry) -> KeyPadding:
    capacity = max(1, g.kv_len + draw(st.integers(0, 3)))
    return KeyPadding(bools(draw(seeds), *draw(st.sampled_from([(capacity,), (1, capacity), (g.batch, capacity)]))))


@st.composite
def documents(draw: st.DrawFn, g: Geometry) -> Documents:
    rng = np.random.default_rng(draw(seeds))
    sequences = draw(st.sampled_from([1, g.batch]))
    queries, kinds, mean_run = max(1, g.last_position() + 1), draw(st.integers(1, 3)), draw(st.sampled_from([1, 40]))

    def ids(length: int) -> npt.NDArray[np.int64]:
        return np.stack([rng.integers(0, kinds, length).repeat(mean_run)[:length] for _ in range(sequences)])

    if draw(st.booleans()):
        return Documents(ids(max(queries, g.kv_len)))
    return Documents(ids(queries), ids(g.kv_len))


@st.composite
def query_padding(draw: st.DrawFn, g: Geometry) -> QueryPadding:
    length = max(1, g.last_position() + 1 + draw(st.integers(0, 3)))
    return QueryPadding(bools(draw(seeds), *draw(st.sampled_from([(length,), (1, length), (g.batch, length)]))))


@st.composite
def trees(draw: st.DrawFn, g: Geometry) -> Tree:
    nodes = draw(st.integers(0, 12))
    parents = [draw(st.integers(-1, node - 1)) for node in range(nodes)]
    return Tree(parents, draw(st.none() | st.integers(0, g.kv_len + 5)))


@st.composite
def block_sparse(draw: st.DrawFn, g: Geometry) -> BlockSparse:
    size = draw(st.sampled_from([1, 3, 16, 64]))
    rows, columns = (max(1, -(-n // size)) for n in (g.last_position() + 1, g.kv_len))
    front = draw(st.sampled_from([(), (1, 1), (g.batch, 1), (1, g.heads), (g.batch, g.heads)]))
    return BlockSparse(bools(draw(seeds), *front, rows, columns), size)


@st.composite
def neighborhoods(draw: st.DrawFn, g: Geometry) -> Neighborhood:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 30)))
    kernel = tuple(draw(st.integers(1, n)) for n in shape)
    return Neighborhood(kernel[1], shape[1]) if draw(st.booleans()) else Neighborhood(kernel, shape)


def leaves(g: Geometry) -> st.SearchStrategy[Mask]:
    side = st.none() | st.integers(0, 5) | st.integers(0, g.kv_len + 5)
    size = st.integers(1, 9) | st.integers(1, g.kv_len + 5)
    return st.one_of(
        st.builds(Padding, per_sequence(g.batch, 0, g.kv_len + 3), st.sampled_from(["right", "left"])),
        query_padding(g),
        st.builds(Chunked, size),
        st.builds(Dilated, st.integers(0, 9), size),
        st.builds(GlobalTokens, st.lists(st.integers(0, g.kv_len + 5), max_size=5)),
        st.builds(FirstTokens, st.integers(0, g.kv_len + 3)),
        trees(g),
        block_sparse(g),
        neighborhoods(g),
        st.builds(BlockDiffusion, size, st.none() | size),
        st.builds(Full),
        st.builds(Causal),
        st.builds(SlidingWindow, side, side),
        st.builds(Padding, per_sequence(g.batch, 0, g.kv_len + 3)),
        st.builds(PrefixLM, per_sequence(g.batch, 0, g.kv_len + 3)),
        key_padding(g),
        documents(g),
        dense(g),
    )


def expressions(g: Geometry) -> st.SearchStrategy[Mask]:
    """Leaves combined with ``&``, ``|`` and ``~``, some levels deep."""
    return st.recursive(
        leaves(g),
        lambda inner: st.one_of(
            st.builds(operator.and_, inner, inner),
            st.builds(operator.or_, inner, inner),
            st.builds(operator.invert, inner),
        ),
        max_leaves=6,
    )


@st.composite
def geometries_and_masks(draw: st.DrawFn) -> tuple[Geometry, Mask]:
    g = draw(geometries())
    return g, draw(expressions(g))


@dataclass(frozen=True)
class Problem:
    """One attention call: arrays of standard normal numbers, a mask, a bias, and where it all stands."""

    geometry: Geometry
    mask: Mask
    q: Array
    k: Array
    v: Array
    bias: Array | None

    def where(self) -> dict[str, PerSequence]:
        return {"q_offset": self.geometry.q_offset, "kv_lengths": self.geometry.kv_lengths}


@st.composite
def problems(draw: st.DrawFn, with_bias: bool = True) -> Problem:
    group, kv_heads = draw(st.integers(1, 8)), draw(st.integers(1, 2))
    g = draw(geometries(batch=draw(st.integers(1, 2)), heads=group * kv_heads))
    head_dim, v_head_dim = (draw(st.one_of(st.integers(1, 20), st.integers(21, 256))) for _ in range(2))
    rng, dtype = np.random.default_rng(draw(seeds)), draw(st.sampled_from([np.float32, np.float64]))
    bias = None
    if with_bias and draw(st.booleans()):
        extents = [draw(st.sampled_from([1, n])) for n in (g.batch, g.heads, g.q_len, g.kv_len)]
        bias = normal(rng, *extents, dtype=dtype)
        bias[rng.random(extents) < draw(st.sampled_from([0, 0.3]))] = -np.inf
    return Problem(
        geometry=g,
        mask=draw(expressions(g)),
        q=normal(rng, g.batch, g.heads, g.q_len, head_dim, dtype=dtype),
        k=normal(rng, g.batch, kv_heads, g.kv_len, head_dim, dtype=dtype),
        v=normal(rng, g.batch, kv_heads, g.kv_len, v_head_dim, dtype=dtype),
        bias=bias,
    )
