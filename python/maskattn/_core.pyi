"""The compiled half. Arrays are borrowed; errors are TypeError or ValueError."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

_Result = TypeVar("_Result")

class MaskExpr:
    @property
    def batch(self) -> int: ...
    @property
    def heads(self) -> int: ...

class MaskPlan:
    """A mask lowered for one geometry, usable by any number of calls; :meth:`extend` lets it grow.

    Two plans are equal when the same pairs of query and key attend, whatever masks they were made from. ``plan[a:b]``
    is a plan of those rows and the same keys, which shares memory: ``plan.extend()``, then
    ``attention(q, k, v, mask=plan[-1:])`` is a step of decoding.
    """

    def extend(self, n: int = 1, threads: int | None = None) -> MaskPlan:
        """Take in ``n`` rows, and ``n`` keys of every sequence, behind those there are; returns the plan itself.

        It then is ``mask.plan(q_len + n, kv_len + n, kv_lengths=kv_lengths + n, q_offset=q_offset)``. Rows that do not
        look ahead stay as they are; calls under way in other threads, and slices, keep the plan as it was.

        Raises:
            TypeError, ValueError: ``n`` is no integer from 0 up, or the mask does not reach that far; nothing changes.
        """

    def __getitem__(self, rows: slice) -> MaskPlan: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    def is_subset(self, other: MaskPlan) -> bool:
        """Whether every pair that attends here attends in ``other``; ValueError where the extents differ."""

    @property
    def batch(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def q_len(self) -> int: ...
    @property
    def kv_len(self) -> int: ...
    @property
    def kv_lengths(self) -> list[int]:
        """One, or one per sequence."""
    @property
    def q_offset(self) -> list[int]:
        """One, or one per sequence."""
    @property
    def expr(self) -> MaskExpr: ...
    @property
    def stored(self) -> tuple[int, int]:
        """Sequences and heads that differ: 1 where all agree."""
    @property
    def row_base(self) -> int:
        """Rows that a slice has left out in front."""
    @property
    def nbytes(self) -> int: ...
    def count(self) -> int:
        """Pairs of query and key that attend, over all sequences and heads."""
    def empty_rows(self) -> npt.NDArray[np.bool_]:
        """(batch, heads, q_len), True where the query sees no key."""
    def tiles(self, q_size: int = 64, kv_size: int = 64, threads: int | None = None) -> npt.NDArray[np.uint8]:
        """(batch, heads, query blocks, key blocks): 0 where a tile is empty, 1 partial, 2 full."""
    def used(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], int]:
        """Rows (n, q_len) that see a key under some head, keys (n, kv_len) that some row of some head sees, and pairs.

        n is the batch, or 1 where all sequences agree. The pairs, over all sequences and heads, are those of a row and
        a key in a panel (64 keys from a multiple of 64) of which the row sees something: what kernels touch.
        """
    def spans(self, b: int, h: int, i: int) -> tuple[list[tuple[int, int]], bool]: ...
    def agrees(self, kv_lengths: Any, q_offset: Any) -> bool: ...

def mask_band(left: int | None, right: int | None) -> MaskExpr: ...
def mask_key_range(begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> MaskExpr: ...
def mask_keys(keep: npt.NDArray[np.bool_]) -> MaskExpr: ...
def mask_documents(q_ids: npt.NDArray[np.int64], kv_ids: npt.NDArray[np.int64]) -> MaskExpr: ...
def mask_dense(keep: npt.NDArray[np.bool_]) -> MaskExpr: ...
def mask_last_keys(counts: npt.NDArray[np.int64]) -> MaskExpr: ...
def mask_queries(keep: npt.NDArray[np.bool_]) -> MaskExpr: ...
def mask_chunks(size: int, earlier: bool) -> MaskExpr: ...
def mask_dilated(window: int, stride: int) -> MaskExpr: ...
def mask_global_tokens(positions: npt.NDArray[np.int64]) -> MaskExpr: ...
def mask_tree(parents: npt.NDArray[np.int64], start: int | None) -> MaskExpr: ...
def mask_block_sparse(blocks: npt.NDArray[np.bool_], size: int) -> MaskExpr: ...
def mask_neighborhood(shape: tuple[int, int], kernel: tuple[int, int]) -> MaskExpr: ...
def mask_block_diffusion(size: int, length: int) -> MaskExpr: ...
def mask_function(function: int, data: int, per_sequence: bool, per_head: bool) -> MaskExpr: ...
def mask_tiles(
    function: Callable[[int, int, int, int, int, int], npt.NDArray[np.bool_]], per_sequence: bool, per_head: bool
) -> MaskExpr: ...
def mask_compressed(plan: MaskPlan, rows: npt.NDArray[np.bool_], keys: npt.NDArray[np.bool_]) -> MaskExpr:
    """The plan without the rows and keys that are False; shapes as of ``MaskPlan.used``."""

def mask_and(terms: list[MaskExpr]) -> MaskExpr: ...
def mask_or(terms: list[MaskExpr]) -> MaskExpr: ...
def mask_not(term: MaskExpr) -> MaskExpr: ...
def mask_program(expr: MaskExpr) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int] | None:
    """The expression as flat data (maskattn/mask_program.hpp), for devices; None where a function decides."""

def make_plan(
    expr: MaskExpr, q_len: int, kv_len: int, batch: int, heads: int, q_offset: Any, kv_lengths: Any, threads: int | None
) -> MaskPlan: ...
def check_geometry(
    expr: MaskExpr, q_len: int, kv_len: int, batch: int, heads: int, q_offset: Any, kv_lengths: Any
) -> tuple[list[int], list[int]]:
    """(q_offset, kv_lengths) as of ``make_plan``, and its errors, without a plan."""

def fill_from_plan(plan: MaskPlan, out: npt.NDArray[Any], shown: int, hidden: int, threads: int | None) -> None: ...
def bits_from_plan(plan: MaskPlan, out: npt.NDArray[np.uint8], threads: int | None) -> None: ...

# packing: cumulative lengths (cu_q, cu_kv). pages: (table, kv_len, k_factors, v_factors) of a cache layer.
# modifiers: (softcap, sinks, table by distance, slopes, precision).
def attention(
    q: Any,
    k: Any,
    v: Any,
    packing: tuple[Any, ...] | None,
    pages: tuple[Any, ...] | None,
    mask: MaskPlan | None,
    bias: Any,
    scale: float | None,
    kv_lengths: Any,
    modifiers: tuple[Any, ...] | None,
    return_lse: bool,
    out: Any,
    threads: int | None,
) -> Any: ...
def attention_plain(
    q: Any, k: Any, v: Any, scale: float | None, kv_lengths: Any, return_lse: bool, out: Any, threads: int | None, /
) -> Any:
    """``attention`` without the other arguments; NotImplemented unless the arrays are NumPy's."""

class PreparedAttention(Generic[_Result]):
    """:func:`maskattn.prepare`'s result: ``attention`` of arrays like those that it was prepared with."""

    def __call__(
        self,
        q: Any,  # NumPy's, or CUDA's as the examples were
        k: Any,
        v: Any,
        *,
        out: Any = None,
        kv_lengths: Any = None,
    ) -> _Result: ...

def prepare_attention(
    q: Any,
    k: Any,
    v: Any,
    mask: MaskPlan | None,
    bias: Any,
    scale: float | None,
    kv_lengths: Any,
    modifiers: tuple[Any, ...] | None,
    return_lse: bool,
    threads: int | None,
) -> PreparedAttention[Any]: ...
def attention_weights(
    q: Any,
    k: Any,
    stage: str,
    rows: list[int] | None,
    pages: tuple[Any, ...] | None,
    mask: MaskPlan | None,
    bias: Any,
    scale: float | None,
    kv_lengths: Any,
    modifiers: tuple[Any, ...] | None,
    threads: int | None,
) -> npt.NDArray[Any]: ...
def largest_weights(
    q: Any,
    k: Any,
    count: int,
    rows: list[int] | None,
    pages: tuple[Any, ...] | None,
    mask: MaskPlan | None,
    bias: Any,
    scale: float | None,
    kv_lengths: Any,
    modifiers: tuple[Any, ...] | None,
    threads: int | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]: ...
def weights_per_key(
    q: Any,
    k: Any,
    pages: tuple[Any, ...] | None,
    mask: MaskPlan | None,
    bias: Any,
    scale: float | None,
    kv_lengths: Any,
    modifiers: tuple[Any, ...] | None,
    threads: int | None,
) -> npt.NDArray[Any]: ...
def linear(
    x: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    threads: int | None,
) -> npt.NDArray[np.float32]: ...

class PackedWeight:
    """A weight matrix, or some of its rows, packed for many products; see ``maskattn.linear.pack``."""

    def __init__(self, outputs: int, inputs: int, dtype: str, group: int = 32) -> None: ...
    @staticmethod
    def over(outputs: int, inputs: int, dtype: str, bytes: npt.NDArray[np.uint8], group: int = 32) -> PackedWeight:
        """A weight over the ``packed_bytes`` of another one, wherever they are now: read only, 64-byte aligned."""

    @property
    def packed_bytes(self) -> npt.NDArray[np.uint8]:
        """Its memory, read only; of a weight that is no slice."""

    @property
    def group(self) -> int:
        """Inputs with one scale; 0 for weights of more than 4 bits."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def ndim(self) -> int: ...
    def __getitem__(self, rows: slice) -> PackedWeight:
        """Some of its rows, step 1, over the same memory."""

    @staticmethod
    def joined(parts: list[PackedWeight]) -> PackedWeight | None:
        """The rows of all parts, if they follow each other in one memory."""

    def fill(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        """Pack rows (count, inputs) as those from ``first`` on."""

    def fill_groups(
        self,
        first: int,
        q: npt.NDArray[np.uint8],
        scales: npt.NDArray[np.float32],
        zeros: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Take 4-bit rows q (count, inputs) as they are, scales and zeros (count, groups); zeros of uint4 only."""

    def take(self, indices: npt.NDArray[np.int64]) -> PackedWeight:
        """Some of its rows, copied as they are packed."""

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Unpacked rows, shape (indices.size, inputs)."""

def packed_linear(
    weight: PackedWeight,
    x: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    threads: int | None,
    activation: str | None = None,
) -> npt.NDArray[np.float32]: ...
def empty(dtype: np.dtype[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """An uninitialised array, on memory that large arrays had which are gone."""

def recyclable_bytes() -> int:
    """Of such memory that waits for arrays."""

def best_outputs(
    weight: PackedWeight,
    x: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    count: int,
    logsumexp: bool,
    threads: int | None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    """The largest outputs of each row of ``packed_linear``: values and outputs (rows, count); logsumexp (rows,)."""

class LayerStack:
    """Layers, for rows of several sequences; see decoder/core_layers.py, which describes them."""

    def __init__(
        self,
        layers: list[Any],
        width: int,
        before: bool,
        after: bool,
        parallel: bool,
        bias_table: object,
        rounds: bool,
        ends: tuple[Any, ...] | None,
    ) -> None:
        """
        Args:
            rounds: whether queries, keys and values are rounded to bfloat16, and what attention makes of them is.
            ends: embeddings and norms, for :class:`Steps`.
        """

    def run(
        self,
        x: npt.NDArray[np.float32],
        counts: npt.NDArray[Any],
        caches: object,
        stored: npt.NDArray[Any] | None,
        masks: list[object] | None,
        memory: object,
        turns: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
        threads: int | None,
        shared: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Rows (sum of counts, width) become the states behind the layers.

        Args:
            counts: how many rows of each sequence.
            caches, stored: layers of a cache that has room for them, and what it holds of each sequence; or None.
            masks: of each layer, in place of its own.
            memory: keys and values (tokens, heads, head_dim) of each layer, and where each sequence's begin and how
                many they are.
            turns: cosines and sines of each row.
            shared: shape (n, 3): a row, a sequence that stores its key and value as well, and at which position, one
                before its own rows, which ``stored`` counts.
        """

    def remember(self, x: npt.NDArray[np.float32], out: npt.NDArray[Any], threads: int | None) -> None:
        """Keys and values of the encoder's output (rows, width), to (layers, 2, heads, rows, head_dim)."""

class Steps:
    """One token behind each sequence at a time, by one thread.

    Args:
        caches, memory: as of :meth:`LayerStack.run`; they must stay where they are.
    """

    def __init__(self, stack: LayerStack, batch: int, caches: object, memory: object) -> None: ...
    def run(
        self,
        tokens: npt.NDArray[Any],
        stored: npt.NDArray[Any],
        turns: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
        threads: int | None,
    ) -> npt.NDArray[np.float32]:
        """Tokens (batch,) to the states behind the layers and the last norms, (batch, width).

        Args:
            stored: how many positions the caches hold of each sequence; they have room for one more.
            turns: cosines and sines of each token.
        """

def layer_norm(
    x: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    eps: float,
    threads: int | None,
) -> npt.NDArray[np.float32]: ...
def rms_norm(
    x: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], eps: float, threads: int | None
) -> npt.NDArray[np.float32]: ...
def activate(function: str, x: npt.NDArray[np.float32], gated: bool, threads: int | None) -> npt.NDArray[np.float32]:
    """``function(x)``; gated: of the first half of the last axis, times the second."""

def from_dlpack(capsule: object, name: str) -> npt.NDArray[Any]:
    """The array that a fresh capsule of ``__dlpack__`` describes, over its memory; ``name`` is for errors."""

def is_cuda(obj: object) -> bool:
    """Whether ``obj`` is an array in the memory of a CUDA device."""

def require_host(name: str, device_type: int) -> None:
    """NotImplementedError unless the CPU can read the memory of DLPack's device type."""

class Exporter:
    """A NumPy array as other libraries take it, also where NumPy's own ``__dlpack__`` refuses: bfloat16."""

    def __init__(self, array: npt.NDArray[Any]) -> None: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

def built_isas() -> list[str]: ...
def runnable_isas() -> list[str]: ...
def current_isa() -> str: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def has_openmp() -> bool: ...
def default_precision() -> int: ...
def set_default_precision(level: int) -> None: ...
def multiply_add(rounds: int, threads: int) -> float:
    """Only multiply-adds of float32, for benchmarks to time; returns how many operations (two for each) there were."""
