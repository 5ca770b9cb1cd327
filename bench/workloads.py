"""What is measured, as data: shapes, masks and seeded inputs, which the pytest benchmarks and the programs share."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

import maskattn
from bench.variants import FLOAT32, Variant
from maskattn import RelativeBias
from maskattn.masks import All, BlockSparse, Causal, Dense, Documents, Mask, Padding, PrefixLM, SlidingWindow

FloatArray = npt.NDArray[Any]  # bfloat16 is not one of NumPy's floating types
BoolArray = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]
TOLERANCE = 4e-6  # absolute, for standard normal inputs in float32
CHECKED_ROWS = 32  # of each head, at most: whole matrices in float64 would take longer than the benchmark
_ROWS_AT_ONCE = 256  # bounds the memory of the definition's (rows, kv_len) arrays


@dataclass(frozen=True)
class Workload:
    """One attention call; ``mask`` stands at positions ``kv_length - q_len`` onwards, as in attention()."""

    name: str
    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    mask: Mask | None = None
    kv_lengths: tuple[int, ...] | None = None
    bias: RelativeBias | None = None

    @property
    def is_decode(self) -> bool:
        return self.q_len == 1

    @property
    def terms(self) -> tuple[Mask, ...]:
        """What the mask is the conjunction of."""
        return self.mask.terms if isinstance(self.mask, All) else () if self.mask is None else (self.mask,)

    @property
    def shape(self) -> str:
        heads = f"{self.q_heads}" if self.q_heads == self.kv_heads else f"{self.q_heads}/{self.kv_heads}"
        return f"{self.batch} x {heads} heads x {self.q_len} rows x {self.kv_len} keys x {self.head_dim}"

    def length(self, b: int) -> int:
        return self.kv_len if self.kv_lengths is None else self.kv_lengths[b]

    def seen(self, b: int, rows: Positions) -> BoolArray:
        """The keys that these rows of sequence ``b`` see, by the mask's definition: shape (len(rows), kv_len)."""
        keys = np.arange(self.kv_len)[None, :]
        exists = np.broadcast_to(keys < self.length(b), (len(rows), self.kv_len))
        if self.mask is None:
            return exists
        return exists & self.mask.allows(b, 0, self.length(b) - self.q_len + rows[:, None], keys)

    @cached_property
    def dense(self) -> BoolArray:
        """The mask of a workload that has one sequence: (q_len, kv_len)."""
        blocks = np.array_split(np.arange(self.q_len), max(1, self.q_len // _ROWS_AT_ONCE))
        return np.concatenate([self.seen(0, rows) for rows in blocks])

    @cached_property
    def visible_pairs(self) -> int:
        """(query, key) pairs that are not masked, over batch and query heads."""
        rows = np.arange(self.q_len)
        blocks = [rows[i : i + _ROWS_AT_ONCE] for i in range(0, self.q_len, _ROWS_AT_ONCE)]
        return self.q_heads * sum(int(self.seen(b, block).sum()) for b in range(self.batch) for block in blocks)

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each visible pair and dimension, in q . k and again in weights . v."""
        return 4 * self.head_dim * self.visible_pairs

    def kv_bytes(self, dtype: npt.DTypeLike = np.float32) -> int:
        """Keys and values that exist: what a decoding step has to read."""
        keys = sum(self.length(b) for b in range(self.batch))
        return 2 * keys * self.kv_heads * self.head_dim * np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Inputs:
    q: FloatArray
    k: FloatArray
    v: FloatArray


def draw(workload: Workload, dtype: npt.DTypeLike = np.float32, logits: float = 1.0) -> Inputs:
    """Standard normal inputs, the same in every run and for every instruction set; queries times ``logits``."""
    w = workload
    rng = np.random.default_rng(zlib.crc32(w.name.encode()))
    shapes = ((w.q_heads, w.q_len), (w.kv_heads, w.kv_len), (w.kv_heads, w.kv_len))
    q, k, v = (rng.standard_normal((w.batch, h, n, w.head_dim), dtype=np.float32) for h, n in shapes)
    return Inputs(*(x.astype(dtype, copy=False) for x in (q * np.float32(logits), k, v)))


def prepare(workload: Workload, inputs: Inputs, variant: Variant = FLOAT32) -> Callable[[], FloatArray]:
    """The call as a model makes it: the mask lowered once for all layers, the output reused.

    The output starts as NaN, so that :func:`check` notices rows that were never written.
    """
    w = workload
    lengths = None if w.kv_lengths is None else np.array(w.kv_lengths)
    options: dict[str, Any] = {"out": np.full_like(inputs.q, np.nan), "kv_lengths": lengths}
    if w.mask is not None:
        options = {"out": options["out"], "mask": w.mask.plan(w.q_len, w.kv_len, batch=w.batch, kv_lengths=lengths)}
    if w.bias is not None:
        options["bias"] = w.bias
    if variant.precision != "highest":
        options["precision"] = variant.precision
    return partial(maskattn.attention, inputs.q, inputs.k, inputs.v, **options)


@dataclass(frozen=True)
class Reference:
    """Rows in float64, from the inputs as they are stored: of every head the first, the last and some between."""

    rows: Positions
    values: npt.NDArray[np.float64]  # (batch, q_heads, len(rows), head_dim)

    @classmethod
    def of(cls, workload: Workload, inputs: Inputs) -> Reference:
        w = workload
        between = np.random.default_rng(0).integers(w.q_len, size=CHECKED_ROWS - 2)
        rows = np.unique(np.concatenate([[0, w.q_len - 1], between]))
        values = np.empty((w.batch, w.q_heads, len(rows), w.head_dim))
        bias = None if w.bias is None else w.bias.values(rows[:, None], np.arange(w.kv_len))
        group = w.q_heads // w.kv_heads
        for b in range(w.batch):
            hidden = ~w.seen(b, rows)
            for g in range(w.kv_heads):
                heads = slice(g * group, (g + 1) * group)
                q = inputs.q[b, heads][:, rows].astype(np.float64) * w.head_dim**-0.5
                k, v = (x[b, g].astype(np.float64) for x in (inputs.k, inputs.v))
                scores = np.einsum("hid,jd->hij", q, k)  # BLAS threads that spin would disturb the timing that follows
                if bias is not None:
                    scores += bias[heads]
                scores[:, hidden] = -np.inf
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                values[b, heads] = np.einsum("hij,jd->hid", weights, v) / weights.sum(axis=-1, keepdims=True)
        return cls(rows, values)

    def error(self, out: FloatArray) -> float:
        """The norm of the difference over the norm of the reference; infinite if anything in ``out`` is not finite."""
        if not np.isfinite(out).all():
            return np.inf
        sampled = out[:, :, self.rows].astype(np.float64)
        return float(np.linalg.norm(sampled - self.values) / np.linalg.norm(self.values))


def check(workload: Workload, inputs: Inputs, out: FloatArray, variant: Variant = FLOAT32) -> None:
    error = Reference.of(workload, inputs).error(out)
    assert error <= variant.tolerance, f"{workload.name}, {variant.name}: relative error {error:.2g}"


def _ragged(count: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Lengths of a padded batch; the first is the longest, which is why the batch is padded to it."""
    rng = np.random.default_rng(count + longest)
    return (longest, *(int(n) for n in rng.integers(shortest, longest, size=count - 1, endpoint=True)))


def document_ids(total: int, shortest: int = 50, longest: int = 1000) -> npt.NDArray[np.int64]:
    """Of ``total`` packed tokens."""
    lengths = np.random.default_rng(total).integers(shortest, longest, size=total // shortest, endpoint=True)
    return np.repeat(np.arange(len(lengths)), lengths)[:total]


def _causal(length: int) -> Workload:
    return Workload(f"causal {length}", 1, 8, 8, length, length, 64, Causal())


def _decode(keys: int, q_heads: int = 8, kv_heads: int = 8, head_dim: int = 64) -> Workload:
    heads = f"{q_heads}" if q_heads == kv_heads else f"{q_heads}/{kv_heads}"
    return Workload(f"decode {keys} keys, {heads} x {head_dim}", 1, q_heads, kv_heads, 1, keys, head_dim)


def _bigbird(length: int, block: int = 64) -> BlockSparse:
    """Blocks: the neighbours, three at random, and the first two rows and columns (arXiv:2007.14062)."""
    count = length // block
    near = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) <= 1
    rng = np.random.default_rng(length)
    for row in near:
        row[rng.choice(count, size=3, replace=False)] = True
    near[:2], near[:, :2] = True, True
    return BlockSparse(near, block)


def _half(length: int) -> Dense:
    """Every pair with probability one half, and the diagonal."""
    return Dense((np.random.default_rng(length).random((length, length)) < 0.5) | np.eye(length, dtype=np.bool_))


def _t5_bias(heads: int) -> RelativeBias:
    table = np.random.default_rng(heads).standard_normal((32, heads), dtype=np.float32)
    return RelativeBias(table.astype(ml_dtypes.bfloat16).astype(np.float64))  # so that every dtype holds it


def _ragged_decode(keys: int, q_heads: int = 8, kv_heads: int = 8, head_dim: int = 64) -> Workload:
    heads = f"{q_heads}" if q_heads == kv_heads else f"{q_heads}/{kv_heads}"
    name = f"decode, ragged batch of 8, {keys} keys, {heads} x {head_dim}"
    return Workload(name, 8, q_heads, kv_heads, 1, keys, head_dim, kv_lengths=_ragged(8, keys // 4, keys))


WINDOW = 256  # keys that a query sees, its own included
DOCUMENTS = document_ids(8192)
_CROSS, _ENCODER = _ragged(16, 64, 512), _ragged(16, 32, 256)

CAUSAL_512, CAUSAL_2048, CAUSAL_8192 = _causal(512), _causal(2048), _causal(8192)
CAUSAL_GQA = Workload("causal 2048, 32/8 x 128", 1, 32, 8, 2048, 2048, 128, Causal())
CAUSAL_CHUNK = Workload("causal, last 64 of 4096", 1, 8, 8, 64, 4096, 64, Causal())
PREFIX_LM = Workload("prefix-LM 512 of 2048", 1, 8, 8, 2048, 2048, 64, PrefixLM(512))
PACKED = Workload("documents 8192", 1, 8, 8, 8192, 8192, 64, Causal() & Documents(DOCUMENTS))
SLIDING_WINDOW = Workload("window 256 of 8192", 1, 8, 8, 8192, 8192, 64, Causal() & SlidingWindow(WINDOW - 1))
CROSS = Workload("cross-attention 32 x 512, padded", 16, 8, 8, 32, 512, 64, kv_lengths=_CROSS)
CROSS_MASK = Workload("cross-attention 32 x 512, padding as a mask", 16, 8, 8, 32, 512, 64, mask=Padding(_CROSS))
ENCODER = Workload("encoder 256, padded", 16, 8, 8, 256, 256, 64, kv_lengths=_ENCODER)
ENCODER_MASK = Workload("encoder 256, padding as a mask", 16, 8, 8, 256, 256, 64, mask=Padding(_ENCODER))
# Small ones, for every instruction set and dtype
CAUSAL_GQA_512 = Workload("causal 512, 32/8 x 128", 1, 32, 8, 512, 512, 128, Causal())
PREFIX_LM_1024 = Workload("prefix-LM 256 of 1024", 1, 8, 8, 1024, 1024, 64, PrefixLM(256))
WINDOW_2048 = Workload("window 256 of 2048", 1, 8, 8, 2048, 2048, 64, Causal() & SlidingWindow(WINDOW - 1))
DOCUMENTS_2048 = Workload("documents 2048", 1, 8, 8, 2048, 2048, 64, Causal() & Documents(DOCUMENTS[:2048]))
BIGBIRD = Workload("BigBird 2048", 1, 8, 8, 2048, 2048, 64, _bigbird(2048))
DENSE = Workload("dense 50% of 2048", 1, 8, 8, 2048, 2048, 64, _half(2048))
T5_BIAS = Workload("T5 bias 512, batch 8", 8, 8, 8, 512, 512, 64, bias=_t5_bias(8))
_HEADS = ((8, 8, 64), (32, 8, 128))
DECODE = tuple(_decode(n, *heads) for heads in _HEADS for n in (128, 1024, 8192, 32768))
DECODE_RAGGED = tuple(_ragged_decode(n, *heads) for heads in _HEADS for n in (1024, 8192))
SMALL = Workload("smallest call", 1, 8, 8, 1, 16, 64)
