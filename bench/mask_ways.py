"""How people who know NumPy, PyTorch or transformers make a mask; ours is compared with the fastest way of each case.

Positions and buffers are made here, outside the timing; a library that can write into old memory does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import as_strided
from torch.nn.attention.flex_attention import create_block_mask

from bench.side_by_side import Ways
from bench.workloads import WINDOW, document_ids
from maskattn.masks import Causal, Documents, Mask, Padding, PrefixLM, SlidingWindow

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MaskCase:
    """A mask of n x n positions: ours, and spelled out for positions that broadcast, arrays or tensors alike."""

    name: str
    n: int
    build: Callable[[], Mask]  # from its parameters, which count as given
    seen: Callable[[Any, Any], Any]  # of query and key positions

    @property
    def prefix(self) -> int:
        return self.n // 4

    @property
    def length(self) -> int:
        """Keys that are no padding."""
        return self.n - self.n // 8

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return document_ids(self.n, max(1, min(50, self.n // 8)), min(1000, self.n // 2))


PLANS = ("documents", "window", "prefix")
ARRAYS = ("causal", "window", "documents", "padding", "prefix")


def mask_case(name: str, n: int) -> MaskCase:
    sizes = MaskCase(name, n, Causal, lambda i, j: j <= i)
    ids, length, prefix = sizes.ids, sizes.length, sizes.prefix
    tensor_ids = torch.from_numpy(ids)

    def same_document(i: Any, j: Any) -> Any:
        of = tensor_ids if isinstance(i, torch.Tensor) else ids
        return of[i] == of[j]

    definitions: dict[str, tuple[Callable[[], Mask], Callable[[Any, Any], Any]]] = {
        "causal": (Causal, lambda i, j: j <= i),
        "window": (lambda: Causal() & SlidingWindow(WINDOW - 1), lambda i, j: (j <= i) & (i - j < WINDOW)),
        "documents": (lambda: Causal() & Documents(ids), lambda i, j: (j <= i) & same_document(i, j)),
        "padding": (lambda: Padding(length), lambda i, j: (j < length) & (i >= 0)),
        "prefix": (lambda: PrefixLM(prefix), lambda i, j: (j <= i) | (j < prefix)),
    }
    return MaskCase(name, n, *definitions[name])


def block_masks(c: MaskCase, *, compiled: bool = True) -> Ways:
    """FlexAttention's block mask, compiled as its documentation recommends."""
    torch.compiler.reset()  # after eight masks it would compile no more, and run uncompiled
    make = torch.compile(create_block_mask, dynamic=False) if compiled else create_block_mask
    name = "torch.compile(create_block_mask)" if compiled else "create_block_mask"
    return {name: partial(make, lambda b, h, q, k: c.seen(q, k), None, None, c.n, c.n, device="cpu")}


def array_ways(c: MaskCase, dtype: npt.DTypeLike) -> Ways:
    """A bool array (True = attend), or a float one (0 and -inf), of shape (n, n)."""
    out = np.empty((c.n, c.n), dtype)
    kinds = {"causal": _causal, "window": _window, "documents": _documents, "padding": _padding, "prefix": _prefix}
    return {**_by_definition(c, out), **kinds[c.name](c, out, torch.from_numpy(out)), **_transformers(c, out)}


def fills(out: Array) -> Ways:
    """What writing an array costs, whatever is written."""
    tensor, value = torch.from_numpy(out), _hidden(out)
    return {"fill, NumPy": lambda: out.fill(value), "fill_, torch": lambda: tensor.fill_(value)}


def _shown(out: Array) -> Any:
    return True if out.dtype == np.bool_ else 0.0


def _hidden(out: Array) -> Any:
    return False if out.dtype == np.bool_ else -np.inf


def _positions(n: int) -> tuple[Array, Array]:
    return np.arange(n)[:, None], np.arange(n)[None, :]


def _by_definition(c: MaskCase, out: Array) -> Ways:
    i, j = _positions(c.n)
    rows, keys = torch.from_numpy(i), torch.from_numpy(j)
    if out.dtype == np.bool_:
        return {"NumPy, by definition": lambda: c.seen(i, j), "torch, by definition": lambda: c.seen(rows, keys)}
    shown, hidden, target = torch.tensor(0.0), torch.tensor(-np.inf), torch.from_numpy(out)
    return {
        "NumPy, by definition": lambda: np.where(c.seen(i, j), np.float32(0), np.float32(-np.inf)),
        "torch, by definition": lambda: torch.where(c.seen(rows, keys), shown, hidden, out=target),
    }


def _triangle(out: torch.Tensor) -> torch.Tensor:
    return out.fill_(True).tril_() if out.dtype == torch.bool else out.fill_(-torch.inf).triu_(1)


def _compare(c: MaskCase, out: Array, tensor: torch.Tensor, limit: Array) -> Ways:
    """Keys up to each row's limit; the comparison itself writes a bool array."""
    if out.dtype != np.bool_:
        return {}
    j, last = np.arange(c.n)[None, :], torch.from_numpy(limit)
    keys = torch.from_numpy(j)
    return {
        "NumPy, comparison into out": lambda: np.less_equal(j, limit, out=out),
        "torch, comparison into out": lambda: torch.le(keys, last, out=tensor),
    }


def _overlapping_views(c: MaskCase, out: Array, seen: int) -> Ways:
    """Every row is the one above, shifted by one: a matrix of views of one line, as scipy.linalg.toeplitz makes it."""
    line = np.full(2 * c.n - 1, _hidden(out), out.dtype)
    line[max(0, c.n - seen) : c.n] = _shown(out)
    views = as_strided(line[c.n - 1 :], (c.n, c.n), (-line.itemsize, line.itemsize))
    return {"NumPy, overlapping views of a line": lambda: _copied(out, views)}


def _copied(out: Array, source: Array) -> Array:
    np.copyto(out, source)
    return out


def _causal(c: MaskCase, out: Array, tensor: torch.Tensor) -> Ways:
    return {
        **_overlapping_views(c, out, c.n),
        **_compare(c, out, tensor, np.arange(c.n)[:, None]),
        "torch, a triangle in place": lambda: _triangle(tensor),
    }


def _window(c: MaskCase, out: Array, tensor: torch.Tensor) -> Ways:
    ways = _overlapping_views(c, out, WINDOW)
    if out.dtype == np.bool_:
        ways["torch, two triangles in place"] = lambda: _triangle(tensor).triu_(1 - WINDOW)
    return ways


def _prefix(c: MaskCase, out: Array, tensor: torch.Tensor) -> Ways:
    def columns() -> torch.Tensor:
        _triangle(tensor)[:, : c.prefix] = _shown(out)
        return tensor

    limit = np.maximum(np.arange(c.n), c.prefix - 1)[:, None]
    return {**_compare(c, out, tensor, limit), "torch, a triangle and columns in place": columns}


def _documents(c: MaskCase, out: Array, tensor: torch.Tensor) -> Ways:
    starts = [0, *(np.flatnonzero(np.diff(c.ids)) + 1).tolist(), c.n]
    spans = [slice(begin, end) for begin, end in pairwise(starts)]
    longest = max(span.stop - span.start for span in spans)
    triangle = np.where(np.tri(longest, dtype=np.bool_), _shown(out), _hidden(out)).astype(out.dtype)

    def blocks(target: Any, source: Any) -> Any:
        for span in spans:
            size = span.stop - span.start
            target[span, span] = source[:size, :size]
        return target

    def in_numpy() -> Array:
        out.fill(_hidden(out))
        return blocks(out, triangle)

    shared = torch.from_numpy(triangle)
    return {
        "NumPy, a block per document": in_numpy,
        "torch, a block per document": lambda: blocks(tensor.fill_(_hidden(out)), shared),
    }


def _padding(c: MaskCase, out: Array, tensor: torch.Tensor) -> Ways:
    row = np.full((1, c.n), _hidden(out), out.dtype)
    row[:, : c.length] = _shown(out)
    shared = torch.from_numpy(row)

    def columns() -> Array:
        out[:, : c.length] = _shown(out)
        out[:, c.length :] = _hidden(out)
        return out

    return {
        "NumPy, columns": columns,
        "NumPy, a row for all": lambda: _copied(out, row),
        "torch, a row for all": lambda: tensor.copy_(shared),
    }


def _transformers(c: MaskCase, out: Array) -> Ways:
    """transformers' own masks: ``sdpa_mask`` is bool, ``eager_mask`` has the dtype's lowest number where it hides."""
    if find_spec("transformers") is None:
        return {}
    from transformers import masking_utils as hf

    ids, padding = torch.from_numpy(c.ids)[None], (torch.arange(c.n) < c.length)[None]
    functions = {
        "causal": hf.causal_mask_function,
        "window": hf.sliding_window_causal_mask_function(WINDOW),
        "documents": hf.and_masks(hf.causal_mask_function, hf.packed_sequence_mask_function(ids)),
        "padding": hf.and_masks(hf.bidirectional_mask_function, hf.padding_mask_function(padding)),
        "prefix": hf.or_masks(hf.causal_mask_function, lambda b, h, q, k: k < c.prefix),
    }
    form = "sdpa_mask" if out.dtype == np.bool_ else "eager_mask"
    way = partial(getattr(hf, form), 1, c.n, c.n, mask_function=functions[c.name], allow_is_causal_skip=False)
    return {f"transformers, {form}": way}
