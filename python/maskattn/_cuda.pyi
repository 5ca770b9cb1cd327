"""The CUDA half: there where the package was built with it. Arguments are checked by those who call; errors are
TypeError, ValueError, and RuntimeError with CUDA's own words.

A stream is the number of a ``cudaStream_t``; dtypes are NumPy's names, and "bfloat16".
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# Of devices and streams.

emulated: bool  # whether the host's threads stand for a device, as in tests

def device_count() -> int: ...
def current_device() -> int: ...
def set_device(device: int, /) -> None: ...
def device_of(pointer: int, /) -> int:
    """The device that has this memory; the current one for what is no device's own."""

def is_capturing(stream: int, /) -> bool:
    """Whether a graph is made of what the stream is given."""

def wait_for(later: int, earlier: int, /) -> None:
    """What is launched on ``later`` from now on waits for what was launched on ``earlier`` until now."""

def synchronize(stream: int, /) -> None: ...

# Only where devices are emulated, of tests:
def emulate(compute_capability: int, /) -> int:
    """The emulated devices' compute capability from now on, 10 * major + minor; returns the one before."""

# Of arrays.

class Array:
    """An array in a device's memory, ours or lent by another library. Work on it is ordered on ``stream``."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
    @property
    def dtype(self) -> str: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def stream(self) -> int: ...
    @property
    def pointer(self) -> int: ...
    @property
    def contiguous(self) -> bool: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def copy_pages(self, sources: npt.ArrayLike, targets: npt.ArrayLike, slots: int) -> None:
        """Of a pool (pages, heads, page_size, dim) or of its scales: the first ``slots`` rows of pages, copied to
        others."""
    def copy_from(self, at: int, other: Array, first: int, count: int) -> None:
        """``count`` elements of ``other``, which must be there, from number ``first`` on, become those from number
        ``at`` on; both arrays are of one dtype and contiguous."""

def empty(shape: list[int] | tuple[int, ...], dtype: str, stream: int, /) -> Array:
    """In C order, on the current device, as are those of ``to_device``."""

def to_device(host: npt.NDArray[Any], dtype: str, stream: int, /) -> Array:
    """A copy of a C-contiguous array, which may go when this returns."""

def to_host(array: Array, host: npt.NDArray[Any], stream: int, /) -> None:
    """Into a C-contiguous array of as many bytes; waits for the stream."""

def from_dlpack(object: object, name: str, stream: int, reuses: bool = False) -> Array:
    """The array of a fresh capsule of ``__dlpack__``, over its memory.

    Args:
        name: of the argument, for errors.
        reuses: whether its library gives memory that it gets back to others at once: then the array's end waits for
            the stream.
    """

def from_interface(interface: dict[str, Any], object: object, name: str, device: int, stream: int, /) -> Array:
    """The array that ``__cuda_array_interface__`` of ``object`` describes; ``object`` lives as long as it does."""

# Of masks.

class Program:
    """A mask's expression on a device."""

    @property
    def nbytes(self) -> int: ...

class Plan:
    """A mask lowered for one geometry on a device. Work on it is ordered on ``stream``."""

    @property
    def batch(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def q_len(self) -> int: ...
    @property
    def kv_len(self) -> int: ...
    @property
    def spans_per_row(self) -> int:
        """0: bits are kept instead."""
    @property
    def nbytes(self) -> int: ...
    @property
    def kv_lengths(self) -> Array:
        """int64, one for all sequences or one each."""
    @property
    def device(self) -> int: ...
    @property
    def stream(self) -> int: ...
    def tiles(self) -> npt.NDArray[np.uint8]:
        """(sequences and heads that differ, query tiles, key tiles), 64 x 64: 0 empty, 1 partial, 2 full. Waits."""

def make_program(steps: npt.NDArray[np.int64], data: npt.NDArray[np.int64], spans: int, stream: int, /) -> Program:
    """What ``_core.mask_program`` has made."""

def program_of_bools(keep: Array, stream: int, /) -> Program:
    """Of a bool array of the device, which must live until what uses the program has been launched."""

def make_plan(
    source: Program | npt.NDArray[np.uint64],
    extents: tuple[int, int],
    q_len: int,
    kv_len: int,
    stored: tuple[int, int],
    q_offset: npt.NDArray[np.int64] | Array | None,
    kv_lengths: npt.NDArray[np.int64] | Array | None,
    q_lengths: npt.NDArray[np.int64] | Array | None,
    row_base: int,
    stream: int,
    /,
) -> Plan:
    """
    Args:
        source: a program, or bits (*stored, q_len, ceil(kv_len / 64)).
        extents: batch and heads.
        stored: sequences and heads that differ.
        q_lengths: rows of each sequence; those at or past it see nothing.
        row_base: rows of the mask that stand before the plan's.
    """

def fill_from_plan(plan: Plan, out: Array, shown: int, hidden: int, /) -> None:
    """(batch, heads, q_len, kv_len) of one of two bit patterns."""

def bits_from_plan(plan: Plan, out: Array, /) -> None:
    """(batch, heads, q_len, ceil(kv_len / 8)), the first key in the lowest bit."""

def words_on_host(
    steps: npt.NDArray[np.int64],
    data: npt.NDArray[np.int64],
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    q_offset: npt.NDArray[np.int64],
    kv_lengths: npt.NDArray[np.int64],
    row_base: int,
    /,
) -> npt.NDArray[np.uint64]:
    """What kernels make of a program, made by the host; (batch, heads, q_len, ceil(kv_len / 64))."""

# Of packed sequences.

class Packing:
    """Where sequences that stand one behind the other begin, and how long they are."""

    @property
    def count(self) -> int: ...
    @property
    def q_len(self) -> int:
        """No sequence has more queries."""
    @property
    def kv_len(self) -> int: ...
    @property
    def q_lengths(self) -> Array:
        """int64 (count,), as are kv_lengths."""
    @property
    def kv_lengths(self) -> Array: ...

def pack(
    cu_q: npt.NDArray[np.int64] | Array,
    cu_kv: npt.NDArray[np.int64] | Array,
    count: int,
    tokens: tuple[int, int],
    most: tuple[int, int],
    stream: int,
    /,
) -> Packing:
    """From cumulative lengths (count + 1,) of queries and keys.

    Args:
        tokens, most: of queries and keys: all that there are, and those of a sequence; what the device has is cut to
            them.
    """

# Of caches.

#: The table, int32 (batch, pages of a sequence), and for int8 the scales of keys and of values, float32 (pages, heads,
#: page_size).
Pages: TypeAlias = tuple[Array, Array | None, Array | None]

def check_tokens(k: Array, v: Array, /) -> None:
    """TypeError for dtypes that pages cannot store."""

def append_tokens(
    k_pool: Array,
    v_pool: Array,
    k_scales: Array | None,
    v_scales: Array | None,
    k: Array,
    v: Array,
    table: Array,
    lengths: npt.NDArray[np.int64],
    stream: int,
    /,
) -> None:
    """Tokens (batch, heads, count, dim) go behind those that pools (pages, heads, page_size, dim) hold.

    Args:
        k_scales, v_scales: (pages, heads, page_size), where pools are int8; NaN for what is not finite.
        table: int32 (batch, pages of a sequence), a page for every token.
        lengths: (2 * batch,): tokens that each sequence has, and behind them those that each gets.
    """

# Of attention.

def check_arrays(q: Array, k: Array, v: Array, pages: Pages | None, /) -> None:
    """TypeError or ValueError where they do not belong together."""

def check_packed(q: Array, k: Array, v: Array, /) -> None:
    """The same of packed sequences, (tokens, heads, dim)."""

def check_prepared(
    q: Array,
    k: Array,
    v: Array,
    plan: Plan,
    bias: Array | None,
    scale: float,
    softcap: float,
    sinks: Array | None,
    table: Array | None,
    slopes: Array | None,
    precision: int,
    /,
) -> None:
    """TypeError or ValueError for what ``attention`` would refuse."""

def attention(
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array | None,
    plan: Plan,
    bias: Array | None,
    scale: float,
    softcap: float,
    sinks: Array | None,
    table: Array | None,
    slopes: Array | None,
    precision: int,
    pages: Pages | None,
    packing: Packing | None,
    stream: int,
    /,
) -> None:
    """Writes ``out``, and ``lse`` where there is one; not waited for.

    Args:
        table, slopes: of a bias by distance.
        precision: 0 "highest", 1 "high", 2 "medium".
        pages: then k and v are pools of pages.
        packing: then q, k, v and out are packed, (tokens, heads, dim), and lse is (tokens, q_heads).
    """

def attention_weights(
    q: Array,
    k: Array,
    out: Array,
    plan: Plan,
    bias: Array | None,
    scale: float,
    softcap: float,
    sinks: Array | None,
    table: Array | None,
    slopes: Array | None,
    precision: int,
    pages: Pages | None,
    rows: Array | None,
    softmax: bool,
    stream: int,
    /,
) -> None:
    """Writes ``out``, (batch, q_heads, rows, kv_len), contiguous: scores, or weights; not waited for.

    Args:
        rows: int32: the queries that are asked about; None: all.
        softmax: whether it is weights.
    """

def largest_weights(
    q: Array,
    k: Array,
    keys: Array,
    weights: Array,
    plan: Plan,
    bias: Array | None,
    scale: float,
    softcap: float,
    sinks: Array | None,
    table: Array | None,
    slopes: Array | None,
    precision: int,
    pages: Pages | None,
    rows: Array | None,
    stream: int,
    /,
) -> None:
    """Writes ``keys``, int64, and ``weights``, float32, (batch, q_heads, rows, topk), contiguous; not waited for."""

def weights_per_key(
    q: Array,
    k: Array,
    sums: Array,
    plan: Plan,
    bias: Array | None,
    scale: float,
    softcap: float,
    sinks: Array | None,
    table: Array | None,
    slopes: Array | None,
    precision: int,
    pages: Pages | None,
    stream: int,
    /,
) -> None:
    """Writes ``sums``, float32 (batch, q_heads, kv_len), contiguous; not waited for."""

def check_states(out_a: Array, lse_a: Array, out_b: Array, lse_b: Array, /) -> None:
    """TypeError or ValueError where they do not belong together."""

def merge_states(
    out_a: Array, lse_a: Array, out_b: Array, lse_b: Array, out: Array, lse: Array, stream: int, /
) -> None:
    """Writes ``out`` and ``lse``, contiguous, of the shapes and dtypes of ``out_a`` and ``lse_a``; not waited for."""

# Of the decoder. The device's arrays, stacks and heads share a stream.

class DecoderDevice:
    def __init__(self, id: int, libraries: list[str]) -> None:
        """
        Args:
            libraries: files of cuBLASLt to try before those that the system knows.
        """

class DeviceArray:
    """An array in C order, not initialised."""

    def __init__(self, device: DecoderDevice, shape: list[int], dtype: np.dtype[Any]) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...
    def write(self, first: int, values: npt.NDArray[Any]) -> None:
        """Elements from number ``first`` on, of the same dtype."""
    def numpy(self) -> npt.NDArray[Any]:
        """A copy; waits for the stream."""
    def __array__(self, *args: Any, **kwargs: Any) -> npt.NDArray[Any]: ...
    def __getitem__(self, key: Any, /) -> Any:
        """Of the copy."""
    def gathered(self, rows: npt.ArrayLike) -> DeviceArray:
        """Rows of an array (n, width); row -1 is zeros."""
    def copy_pages(self, sources: npt.ArrayLike, targets: npt.ArrayLike, slots: int) -> None:
        """Of a pool (pages, heads, page_size, dim): the first ``slots`` rows of pages, copied to others."""
    def copy_from(self, at: int, other: DeviceArray, first: int, count: int) -> None:
        """``count`` elements of ``other``, from number ``first`` on, become those from number ``at`` on."""

class DeviceStack:
    """Layers, for rows of several sequences; see decoder/device/layers.py, which describes them."""

    def __init__(
        self,
        device: DecoderDevice,
        dtype: np.dtype[Any],
        width: int,
        placement: tuple[bool, bool, bool],
        layers: list[Any],
        bias_table: DeviceArray | None,
        embedding: tuple[Any, ...],
        final_norm: tuple[Any, ...] | None,
        final_map: tuple[Any, ...] | None,
    ) -> None: ...
    def run(
        self,
        tokens: npt.ArrayLike | None,
        segments: npt.ArrayLike | None,
        x: npt.ArrayLike | DeviceArray | None,
        counts: npt.ArrayLike,
        stored: npt.ArrayLike,
        pools: list[tuple[Any, Any]] | None,
        tables: npt.ArrayLike | None,
        masks: list[npt.NDArray[np.int32]],
        mask_of_layer: list[int],
        memory: tuple[Any, ...] | None,
        turns: tuple[npt.ArrayLike, npt.ArrayLike] | None,
        taps: list[int],
    ) -> tuple[DeviceArray, list[DeviceArray]]:
        """
        Args:
            tokens, segments: (rows,), rows being the sum of counts; or
            x: (rows, width).
            counts, stored: (batch,): rows of each sequence, and those that the cache holds of it.
            pools: keys and values of each layer, (pages, kv_heads, page_size, head_dim).
            tables: (layers or 1, batch, pages of a sequence).
            masks: spans (batch, longest count, spans of a row, 2).
            memory: keys and values of each layer, the source and the length of each sequence, rows of a source.
            turns: cosines and sines, (rows, rotary_dim / 2).
            taps: layers before which the states are wanted.

        Returns:
            States (rows, width), float32, and those of each of ``taps``.
        """
    def project_memory(
        self,
        map: tuple[Any, ...],
        norm: tuple[Any, ...] | None,
        heads: int,
        head_dim: int,
        x: DeviceArray,
        sources: npt.ArrayLike,
        positions: npt.ArrayLike,
        source_count: int,
        page: int,
        dtype: np.dtype[Any],
    ) -> tuple[DeviceArray, DeviceArray]:
        """Keys and values (source_count * page, heads, head_dim) of cross-attention, of rows x."""
    def apply(self, map: tuple[Any, ...], function: int, x: DeviceArray) -> DeviceArray:
        """function(map(x)), float32 (rows, outputs), for as many rows of the map's inputs as x holds."""
    @property
    def graphs(self) -> int:
        """Shapes of steps that have been met, each of which is recorded when it comes again."""

class DeviceHead:
    def __init__(
        self, device: DecoderDevice, weight: DeviceArray, bias: DeviceArray | None, scale: float, softcap: float
    ) -> None: ...
    def scores(self, hidden: DeviceArray) -> DeviceArray:
        """(rows, vocab), float32."""
    def best(
        self, hidden: DeviceArray, count: int, with_sums: bool
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The ``count`` highest scores of each row, whose they are, and log(sum(exp(scores))) where ``with_sums``."""
