"""Hidden keys and rows deleted instead of masked: smaller arrays, the same attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from maskattn import _core

Strategy = Literal["mask", "delete", "auto"]
STRATEGIES = ("mask", "delete", "auto")

FloatArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Indices = list[npt.NDArray[np.intp]]  # of each sequence, what is left

Result = FloatArray | tuple[FloatArray, FloatArray]
# The core's attention of these q, k, v, plan, bias and out; the rest of the call's arguments it has already.
Run = Callable[[FloatArray, FloatArray, FloatArray, _core.MaskPlan, FloatArray | None, FloatArray | None], Result]

# What "auto" weighs, in multiply-adds of a kernel on one thread (measured with AVX-512; where they are slower, deleting
# pays earlier than it believes). Under a mask, kernels score a whole panel of keys where one of them is seen, for a
# whole group of rows where one of them sees it: a pair that is hidden costs head_dim for its score and an exponential;
# its value is skipped. Deleting costs a read and a write (often to a page that the system has yet to provide) for each
# element that moves, on one thread; a new plan's rows; and the Python around it.
_PANEL, _ROW_GROUP = 64, 6
_EXPONENTIAL, _MOVE, _PLAN_ROW, _CALL = 30.0, 32.0, 1e4, 1e7


def attention_without_hidden(
    strategy: Strategy,
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    plan: _core.MaskPlan,
    bias: FloatArray | None,
    out: FloatArray | None,
    run: Run,
    threads: int | None,
) -> Result | None:
    """Attention under ``plan`` of the rows that see a key, over the keys that some row sees.

    Returns:
        What :func:`~maskattn.attention` returns; or None, and nothing is done, where the caller shall mask: nothing
        would move (keys past the last that is seen and rows past the last that sees cost nothing where they are),
        "auto" finds that it does not pay, or an argument is wrong, which the core then reports.
    """
    if not _fit(q, k, v, plan, bias, out):
        return None
    if strategy == "auto" and q.shape[1] * q.shape[2] < _PANEL * k.shape[1]:
        return None  # nearly a decode: it reads each key once, and moving them would read them once more
    used_rows, used_keys, pairs = plan.used()
    rows, keys = (_indices(used, len(q)) for used in (used_rows, used_keys))
    if rows is None and keys is None:
        return None
    if strategy == "auto":
        pairs *= q.shape[0] * q.shape[1] // (plan.batch * plan.heads)
        if not _pays(q, k, v, used_rows, used_keys, pairs, threads or _core.num_threads()):
            return None

    left = _core.mask_compressed(
        plan,
        np.ones_like(used_rows) if rows is None else used_rows,
        np.ones_like(used_keys) if keys is None else used_keys,
    )
    arrays = _gather(q, rows), _gather(k, keys), _gather(v, keys)
    bias = None if bias is None else _gather_bias(bias, len(q), rows, keys)
    q_len, kv_len = (array.shape[2] for array in arrays[:2])
    new_plan = _core.make_plan(left, q_len, kv_len, left.batch, left.heads, 0, None, threads)
    if rows is None:
        return run(*arrays, new_plan, bias, out)
    result = run(*arrays, new_plan, bias, None)
    if out is None:
        out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    if not isinstance(result, tuple):
        return _scatter(result, rows, out, 0)
    lse = np.empty(q.shape[:3], result[1].dtype)
    return _scatter(result[0], rows, out, 0), _scatter(result[1], rows, lse, -np.inf)


def _fit(
    q: FloatArray, k: FloatArray, v: FloatArray, plan: _core.MaskPlan, bias: FloatArray | None, out: FloatArray | None
) -> bool:
    """Whether the arrays are what attention() asks for, where copying parts of them would hide that they are not."""
    arrays = [a for a in (q, k, v, bias, out) if a is not None]
    if not all(isinstance(a, np.ndarray) for a in arrays) or (out is not None and out.dtype != q.dtype):
        return False
    if not all(a.ndim == 4 and a.strides[3] == a.itemsize for a in (q, k, v)):
        return False
    pairs = (*q.shape[:3], k.shape[2])
    return (
        k.shape[0] == len(q)
        and v.shape[:3] == k.shape[:3]
        and (plan.q_len, plan.kv_len) == pairs[2:]
        and _broadcasts((plan.batch, plan.heads), pairs[:2])
        and (bias is None or _broadcasts(bias.shape, pairs))
        and (out is None or _writable(out, (*q.shape[:3], v.shape[3]), arrays[:-1]))
    )


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return len(shape) <= len(full) and all(n in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False))


def _writable(out: FloatArray, shape: tuple[int, ...], inputs: list[FloatArray]) -> bool:
    return (
        out.shape == shape
        and out.flags.writeable
        and out.strides[3] == out.itemsize
        and not any(np.may_share_memory(out, array) for array in inputs)
    )


def _indices(used: BoolArray, batch: int) -> Indices | None:
    """Of the used ones of each sequence; None where they are the first ones everywhere, so that none would move."""
    if (used[:, 1:] <= used[:, :-1]).all():
        return None
    return [np.flatnonzero(line) for line in np.broadcast_to(used, (batch, used.shape[1]))]


def _pays(
    q: FloatArray, k: FloatArray, v: FloatArray, rows: BoolArray, keys: BoolArray, pairs: int, threads: int
) -> bool:
    """Whether the pairs that masking computes in vain cost more than deleting; O(rows + keys)."""
    batch, heads, q_len, head_dim = q.shape
    queries = max(
        1, _ROW_GROUP * k.shape[1] // heads
    )  # that share a group of rows, for heads of a group stand together
    seeing, seen = _share_used(rows, queries), _share_used(keys, _PANEL)
    computed = pairs / seeing  # `pairs` has only the rows that see something
    saved = (computed - pairs * seen) * (head_dim + _EXPONENTIAL) / threads
    moved = 0.0
    if seen < 1:
        moved += keys.mean() * k.shape[2] * k.shape[1] * (head_dim + v.shape[3])
    if seeing < 1:
        moved += rows.mean() * q_len * heads * (head_dim + v.shape[3])
    return bool(saved > batch * moved * _MOVE + rows.sum() * _PLAN_ROW / threads + _CALL)


def _share_used(used: BoolArray, size: int) -> float:
    """Of all in a run of ``size`` with a used one in it, the share that is used."""
    runs = np.zeros((len(used), -(-used.shape[1] // size) * size), np.bool_)
    runs[:, : used.shape[1]] = used
    return float(used.sum() / (runs.reshape(-1, size).any(axis=1).sum() * size))


def _gather(x: FloatArray, indices: Indices | None) -> FloatArray:
    """(batch, heads, length, dim) with what stands at a sequence's indices in front, and zeros behind."""
    if indices is None:
        return x
    made = np.zeros((*x.shape[:2], max(map(len, indices)), x.shape[3]), x.dtype)
    for b, index in enumerate(indices):
        for h in range(x.shape[1]):  # two axes at a time: NumPy then copies whole rows
            np.take(x[b, h], index, axis=0, out=made[b, h, : len(index)], mode="clip")
    return made


def _gather_bias(bias: FloatArray, batch: int, rows: Indices | None, keys: Indices | None) -> FloatArray:
    """The bias of what is left; axes of extent 1 stay."""
    four: FloatArray = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    rows, keys = (None if four.shape[axis] == 1 else indices for axis, indices in ((2, rows), (3, keys)))
    if rows is None and keys is None:
        return four
    extents = [four.shape[axis] if i is None else max(map(len, i)) for axis, i in ((2, rows), (3, keys))]
    made = np.zeros((batch, four.shape[1], *extents), bias.dtype)
    for b, part in enumerate(np.broadcast_to(four, (batch, *four.shape[1:]))):
        part = part if rows is None else part[:, rows[b]]
        part = part if keys is None else part[:, :, keys[b]]
        made[b, :, : part.shape[1], : part.shape[2]] = part
    return made


def _scatter(made: FloatArray, indices: Indices, out: FloatArray, fill: float) -> FloatArray:
    """What :func:`_gather` took from axis 2, back to its place in ``out``, ``fill`` elsewhere."""
    out[...] = fill
    for b, index in enumerate(indices):
        out[b][:, index] = made[b, :, : len(index)]
    return out
