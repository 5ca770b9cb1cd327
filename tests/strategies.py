"""Hypothesis strategies: lengths, geometries, mask expressions, and whole attention problems.

Numbers that make a failure readable when small are drawn one by one; arrays are made from a drawn seed, which is cheap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
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
    Function,
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
from maskattn.masks.function import C_SIGNATURE

Array = npt.NDArray[Any]
PerSequence = int | list[int] | None

# Small ones, and those on either side of a word of bits (64) and of a segment of keys (256).
SHORT = range(13)
LONG = (63, 64, 65, 127, 130, 200, 255, 256, 257, 300)
lengths = st.sampled_from([*SHORT, *SHORT, *LONG])
seeds = st.integers(0, 2**32 - 1)
switches = st.booleans()


def normal(rng: np.random.Generator, *shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def qkv(
    rng: np.random.Generator, batch: int, q_heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int = 16,
    v_head_dim: int | None = None, dtype: Any = np.float32,
) -> tuple[Array, Array, Array]:  # fmt: skip
    return (
        normal(rng, batch, q_heads, q_len, head_dim, dtype=dtype),
        normal(rng, batch, kv_heads, kv_len, head_dim, dtype=dtype),
        normal(rng, batch, kv_heads, kv_len, head_dim if v_head_dim is None else v_head_dim, dtype=dtype),
    )


def bools(seed: int, *shape: int) -> npt.NDArray[np.bool_]:
    """Noise in some rows and long runs in others, as masks have them."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0.03, 0.5, 0.97], size=(*shape[:-1], 1))
    return rng.random(shape) < density


@st.composite
def per_sequence(draw: st.DrawFn, batch: int, low: int, high: int) -> int | list[int]:
    """One integer, or a list of one per sequence."""
    value = st.integers(low, high)
    return [draw(value) for _ in range(batch)] if draw(switches) else draw(value)


# Where a mask is used


@dataclass(frozen=True)
class Geometry:
    """The arguments of ``Mask.plan``."""

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

    def far(self) -> bool:
        """Whether an array with an element for each position of a query would be too large."""
        return self.last_position() > 2000


@st.composite
def offsets(draw: st.DrawFn, batch: int, q_len: int, kv_len: int, bits: int) -> PerSequence:
    """The default, a chunk of a prefill, around the first or last key, or far from all of them."""
    kind = draw(st.sampled_from(["default", "default", "chunk", "chunk", "around", "around", "far"]))
    if kind == "default":
        return None
    if kind == "far":
        return draw(st.sampled_from([10_000, -1000, 2**bits - 1, -(2**bits)]))
    return draw(
        per_sequence(batch, 0, max(0, kv_len - q_len)) if kind == "chunk" else per_sequence(batch, -5, kv_len + 5)
    )


@st.composite
def geometries(draw: st.DrawFn, batch: int | None = None, heads: int | None = None, bits: int = 31) -> Geometry:
    """Offsets have at most so many ``bits``, and a sign."""
    batch = draw(st.integers(1, 3)) if batch is None else batch
    heads = draw(st.integers(1, 3)) if heads is None else heads
    kv_len = draw(lengths)
    few_pairs = batch * heads * kv_len <= 520
    q_len = 1 if draw(st.integers(0, 3)) == 3 else draw(lengths if few_pairs else st.integers(0, 20))
    return Geometry(
        q_len=q_len,
        kv_len=kv_len,
        batch=batch,
        heads=heads,
        q_offset=draw(offsets(batch, q_len, kv_len, bits)),
        kv_lengths=draw(per_sequence(batch, 0, kv_len)) if draw(switches) else None,
    )


# Leaves, each drawn for the geometry it is used in


LARGEST = 2**31 - 1


def size(draw: st.DrawFn, g: Geometry) -> int:
    """Few, some share of the keys, or more than there can be."""
    kind = draw(st.integers(0, 8))
    return LARGEST if kind == 8 else draw(st.integers(1, 9) if kind < 4 else st.integers(1, g.kv_len + 5))


def padding(draw: st.DrawFn, g: Geometry) -> Padding:
    return Padding(draw(per_sequence(g.batch, 0, g.kv_len + 3)), "left" if draw(switches) else "right")


def sliding_window(draw: st.DrawFn, g: Geometry) -> SlidingWindow:
    return SlidingWindow(*(size(draw, g) - 1 if draw(switches) else None for _ in range(2)))


def block_diffusion(draw: st.DrawFn, g: Geometry) -> BlockDiffusion:
    half = max(1, g.kv_len // 2)  # as in training, where the second half of the keys is the clean text
    return BlockDiffusion(size(draw, g), draw(st.sampled_from([None, half, size(draw, g)])))


def global_tokens(draw: st.DrawFn, g: Geometry) -> GlobalTokens:
    return GlobalTokens([draw(st.integers(0, g.kv_len + 5)) for _ in range(draw(st.integers(0, 5)))])


def dense(draw: st.DrawFn, g: Geometry) -> Dense:
    extents = [n if draw(switches) else 1 for n in (g.batch, g.heads, g.q_len, g.kv_len)]
    dropped = draw(st.integers(0, next((i for i, n in enumerate(extents[:3]) if n != 1), 3)))
    return Dense(bools(draw(seeds), *extents[dropped:]))


def by_position(draw: st.DrawFn, batch: int, length: int) -> npt.NDArray[np.bool_]:
    """An element a position, and some more than there are."""
    length = max(1, length + draw(st.integers(0, 3)))
    return bools(draw(seeds), *draw(st.sampled_from([(length,), (1, length), (batch, length)])))


def documents(draw: st.DrawFn, g: Geometry) -> Documents:
    rng, sequences = np.random.default_rng(draw(seeds)), g.batch if draw(switches) else 1
    queries, kinds, mean_run = max(1, g.last_position() + 1), draw(st.integers(1, 3)), draw(st.sampled_from([1, 40]))

    def ids(length: int) -> npt.NDArray[np.int64]:
        return np.stack([rng.integers(0, kinds, length).repeat(mean_run)[:length] for _ in range(sequences)])

    if draw(switches):
        return Documents(ids(max(queries, g.kv_len)))
    return Documents(ids(queries), ids(g.kv_len))


def tree(draw: st.DrawFn, g: Geometry) -> Tree:
    nodes, rng = draw(st.integers(0, 12)), np.random.default_rng(draw(seeds))
    parents = rng.integers(-1, np.arange(nodes)) if nodes else []
    return Tree([int(parent) for parent in parents], draw(st.integers(0, g.kv_len + 5)) if draw(switches) else None)


def block_sparse(draw: st.DrawFn, g: Geometry) -> BlockSparse:
    edge = draw(st.sampled_from([1, 3, 16, 64]))
    rows, columns = (max(1, -(-n // edge)) for n in (g.last_position() + 1, g.kv_len))
    front = draw(st.sampled_from([(), (1, 1), (g.batch, 1), (1, g.heads), (g.batch, g.heads)]))
    return BlockSparse(bools(draw(seeds), *front, rows, columns), edge)


def neighborhood(draw: st.DrawFn, g: Geometry) -> Neighborhood:
    width = draw(st.integers(1, 30))
    height = draw(st.integers(1, 12)) if draw(switches) else max(1, -(-g.kv_len // width))  # all keys are on the grid
    kernel = draw(st.integers(1, height)), draw(st.integers(1, width)) if draw(switches) else width
    return Neighborhood(kernel[1], width) if draw(switches) else Neighborhood(kernel, (height, width))


@dataclass(frozen=True)
class Residues:
    """A Python function for Function: pairs whose weighted sum leaves one of the lower residues."""

    weights: tuple[int, int, int, int]
    modulus: int
    kept: int

    def __call__(self, *at: Any) -> Any:
        return sum(weight * i for weight, i in zip(self.weights, at, strict=True)) % self.modulus < self.kept


@C_SIGNATURE
def in_c(b: int, h: int, q: int, k: int, data: int | None) -> int:
    return int((5 * b + 3 * h + q + 2 * k) % 7 < 3)


def function(draw: st.DrawFn, g: Geometry) -> Function:
    if g.batch * g.heads * g.q_len * g.kv_len <= 300 and draw(switches):  # it is asked pair by pair
        return Function(in_c)
    by_sequence, by_head = draw(switches), draw(switches)
    f = Residues((5 * by_sequence, 3 * by_head, 1, 2), draw(st.integers(1, 7)), draw(st.integers(0, 7)))
    return Function(f, by_sequence, by_head)


LEAVES: dict[type[Mask], Callable[[st.DrawFn, Geometry], Mask]] = {
    Full: lambda draw, g: Full(),
    Causal: lambda draw, g: Causal(),
    Padding: padding,
    SlidingWindow: sliding_window,
    PrefixLM: lambda draw, g: PrefixLM(draw(per_sequence(g.batch, 0, g.kv_len + 3))),
    FirstTokens: lambda draw, g: FirstTokens(draw(st.integers(0, g.kv_len + 3))),
    GlobalTokens: global_tokens,
    Chunked: lambda draw, g: Chunked(size(draw, g)),
    Dilated: lambda draw, g: Dilated(draw(st.integers(0, 9)), size(draw, g)),
    BlockDiffusion: block_diffusion,
    Neighborhood: neighborhood,
    Tree: tree,
    BlockSparse: block_sparse,
    KeyPadding: lambda draw, g: KeyPadding(by_position(draw, g.batch, g.kv_len)),
    Dense: dense,
    Function: function,
    QueryPadding: lambda draw, g: QueryPadding(by_position(draw, g.batch, g.last_position() + 1)),
    Documents: documents,
}
_KINDS = st.sampled_from(list(LEAVES))
_FAR_KINDS = st.sampled_from([kind for kind in LEAVES if kind not in (BlockSparse, QueryPadding, Documents)])


# Expressions


Formula = Mask | tuple[Any, ...]  # a leaf, ("~", formula), ("&", formula, formula) or ("|", formula, formula)

# Masks and NumPy's bool arrays have the same operators.
OPERATORS: dict[str, Callable[..., Any]] = {"~": operator.invert, "&": operator.and_, "|": operator.or_}
_SYMBOLS = st.sampled_from(list(OPERATORS))
MAX_DEPTH = 5
_DEPTHS = st.sampled_from([*range(MAX_DEPTH + 1), MAX_DEPTH, MAX_DEPTH])  # of the most interesting ones, more


def fold(formula: Formula, leaf: Callable[[Mask], Any], operators: dict[str, Callable[..., Any]] = OPERATORS) -> Any:
    """What the operators make of ``leaf(mask)`` of every leaf."""
    if isinstance(formula, Mask):
        return leaf(formula)
    symbol, *operands = formula
    return operators[symbol](*(fold(operand, leaf, operators) for operand in operands))


def built(formula: Formula) -> Mask:
    mask: Mask = fold(formula, lambda leaf: leaf)
    return mask


@st.composite
def formulas(draw: st.DrawFn, g: Geometry, max_depth: int = MAX_DEPTH) -> Formula:
    """Leaves under up to ``max_depth`` levels of ``&``, ``|`` and ``~``; a leaf may come twice."""
    leaves: list[Mask] = []

    def leaf() -> Mask:
        if leaves and draw(st.integers(0, 9)) == 9:
            return leaves[draw(st.integers(0, len(leaves) - 1))]  # sampled_from would compare the masks
        leaves.append(LEAVES[draw(_FAR_KINDS if g.far() else _KINDS)](draw, g))
        return leaves[-1]

    def formula(depth: int) -> Formula:
        if depth == 0:
            return leaf()
        symbol = draw(_SYMBOLS)
        if symbol == "~":
            return "~", formula(depth - 1)
        operands = formula(depth - 1), formula(draw(st.integers(0, depth - 1)))
        return symbol, *(operands if draw(switches) else reversed(operands))

    return formula(min(max_depth, draw(_DEPTHS)))


def expressions(g: Geometry) -> st.SearchStrategy[Mask]:
    return formulas(g).map(built)


@st.composite
def geometries_and_masks(draw: st.DrawFn) -> tuple[Geometry, Mask]:
    g = draw(geometries())
    return g, draw(expressions(g))


# Attention


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
