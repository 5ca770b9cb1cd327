"""What is measured, as data: shapes, masks and seeded inputs, which the pytest benchmarks and the ratios share."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

import maskattn
from maskattn.masks import Causal, Documents, Mask, Padding, PrefixLM, SlidingWindow

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
TOLERANCE = 4e-6  # absolute, for standard normal inputs in float32
_ROWS_AT_ONCE = 256  # bounds the memory of the definition's (rows, kv_len) arrays


@dataclass(frozen=True)
class Workload:
    """One attention call in float32; ``mask`` stands at positions ``kv_length - q_len`` onwards, as in attention()."""

    name: str
    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    mask: Mask | None = None
    kv_lengths: tuple[int, ...] | None = None

    @property
    def shape(self) -> str:
        heads = f"{self.q_heads}" if self.q_heads == self.kv_heads else f"{self.q_heads}/{self.kv_heads}"
        return f"{self.batch} x {heads} heads x {self.q_len} rows x {self.kv_len} keys x {self.head_dim}"

    def length(self, b: int) -> int:
        return self.kv_len if self.kv_lengths is None else self.kv_lengths[b]

    def seen(self, b: int, rows: npt.NDArray[np.int64]) -> BoolArray:
        """The keys that these rows of sequence ``b`` see, by the mask's definition: shape (len(rows), kv_len)."""
        keys = np.arange(self.kv_len)[None, :]
        exists = np.broadcast_to(keys < self.length(b), (len(rows), self.kv_len))
        if self.mask is None:
            return exists
        return exists & self.mask.allows(b, 0, self.length(b) - self.q_len + rows[:, None], keys)

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

    @property
    def kv_bytes(self) -> int:
        """Keys and values that exist: what a decoding step has to read."""
        keys = sum(self.length(b) for b in range(self.batch))
        return 2 * keys * self.kv_heads * self.head_dim * np.dtype(np.float32).itemsize


@dataclass(frozen=True)
class Inputs:
    q: FloatArray
    k: FloatArray
    v: FloatArray


def draw(workload: Workload) -> Inputs:
    """Standard normal inputs, the same in every run and for every instruction set."""
    w = workload
    rng = np.random.default_rng(zlib.crc32(w.name.encode()))
    shapes = ((w.q_heads, w.q_len), (w.kv_heads, w.kv_len), (w.kv_heads, w.kv_len))
    return Inputs(*(rng.standard_normal((w.batch, h, n, w.head_dim), dtype=np.float32) for h, n in shapes))


def prepare(workload: Workload, inputs: Inputs) -> Callable[[], FloatArray]:
    """The call as a model makes it: the mask lowered once for all layers, the output reused.

    The output starts as NaN, so that :func:`check` notices rows that were never written.
    """
    w = workload
    out = np.full_like(inputs.q, np.nan)
    lengths = None if w.kv_lengths is None else np.array(w.kv_lengths)
    if w.mask is None:
        return partial(maskattn.attention, inputs.q, inputs.k, inputs.v, kv_lengths=lengths, out=out)
    plan = w.mask.plan(w.q_len, w.kv_len, batch=w.batch, kv_lengths=lengths)
    return partial(maskattn.attention, inputs.q, inputs.k, inputs.v, mask=plan, out=out)


def check(workload: Workload, inputs: Inputs, out: FloatArray) -> None:
    """Compare a sample of rows with float64: the first, the last and six between, of one head of each sequence.

    Whole matrices in float64 would take longer than the benchmark. einsum, because BLAS threads that spin after
    their work would disturb the timing that follows.
    """
    w = workload
    assert np.isfinite(out).all(), f"{w.name}: rows were left unwritten, or are not finite"
    rng = np.random.default_rng(0)
    for b in range(w.batch):
        h = b % w.q_heads if w.batch > 1 else int(rng.integers(w.q_heads))
        rows = np.unique(np.concatenate([[0, w.q_len - 1], rng.integers(w.q_len, size=6)]))
        keys, values = (x[b, h * w.kv_heads // w.q_heads].astype(np.float64) for x in (inputs.k, inputs.v))
        scores = np.einsum("id,jd->ij", inputs.q[b, h, rows].astype(np.float64), keys) * w.head_dim**-0.5
        scores[~w.seen(b, rows)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        want = np.einsum("ij,jd->id", weights / weights.sum(axis=1, keepdims=True), values)
        np.testing.assert_allclose(out[b, h, rows], want, rtol=0, atol=TOLERANCE, err_msg=f"{w.name}, sequence {b}")


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


WINDOW = 256  # keys that a query sees, its own included
DOCUMENTS = document_ids(8192)
_CROSS, _ENCODER = _ragged(16, 64, 512), _ragged(16, 32, 256)

CAUSAL_512, CAUSAL_2048, CAUSAL_8192 = _causal(512), _causal(2048), _causal(8192)
CAUSAL_GQA = Workload("causal 2048, 32/8 x 128", 1, 32, 8, 2048, 2048, 128, Causal())
CAUSAL_CHUNK = Workload("causal, last 512 of 8192", 1, 8, 8, 512, 8192, 64, Causal())
PREFIX_LM = Workload("prefix-LM 512 of 2048", 1, 8, 8, 2048, 2048, 64, PrefixLM(512))
PACKED = Workload("documents 8192", 1, 8, 8, 8192, 8192, 64, Causal() & Documents(DOCUMENTS))
SLIDING_WINDOW = Workload("window 256 of 8192", 1, 8, 8, 8192, 8192, 64, Causal() & SlidingWindow(WINDOW - 1))
CROSS = Workload("cross-attention 32 x 512, padded", 16, 8, 8, 32, 512, 64, kv_lengths=_CROSS)
CROSS_MASK = Workload("cross-attention 32 x 512, padded", 16, 8, 8, 32, 512, 64, mask=Padding(_CROSS))
ENCODER = Workload("encoder 256, padded", 16, 8, 8, 256, 256, 64, kv_lengths=_ENCODER)
ENCODER_MASK = Workload("encoder 256, padded", 16, 8, 8, 256, 256, 64, mask=Padding(_ENCODER))
DECODE = tuple(_decode(n, *heads) for heads in ((8, 8, 64), (32, 8, 128)) for n in (128, 1024, 8192, 32768))
DECODE_RAGGED = Workload("decode, ragged batch", 8, 8, 8, 1, 1024, 64, kv_lengths=_ragged(8, 256, 1024))
BIASED = Workload("T5 bias 512, batch 8", 8, 8, 8, 512, 512, 64)
SMALL = Workload("smallest call", 1, 8, 8, 1, 16, 64)
