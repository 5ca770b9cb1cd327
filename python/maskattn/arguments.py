"""What attention's functions share: arguments as people give them, to arguments as the core takes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.bias import DistanceBias
from maskattn.masks.base import Mask
from maskattn.masks.dense import four_axes
from maskattn.masks.full import Full

if TYPE_CHECKING:
    from maskattn.interop import SupportsDLPack

FloatArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Lengths = int | npt.NDArray[np.integer[Any]] | list[int] | tuple[int, ...] | None
MaskLike = Mask | _core.MaskPlan | BoolArray | None
Precision = Literal["highest", "high", "medium"]
Modifiers = tuple[float, FloatArray | None, FloatArray | None, FloatArray | None, int | None]

#: Best first: the core knows them by their place.
PRECISIONS: tuple[Precision, ...] = ("highest", "high", "medium")


class Options(TypedDict, total=False):
    """The keyword arguments that all of attention's functions take, for their overloads."""

    mask: MaskLike
    bias: SupportsDLPack | DistanceBias | None
    scale: float | None
    softcap: float
    sinks: npt.ArrayLike | None
    kv_lengths: Lengths
    q_offset: Lengths
    precision: Precision | None
    threads: int | None


class Arguments(NamedTuple):
    """In the order in which the core's functions take them, behind the arrays and before ``threads``."""

    pages: tuple[Any, ...] | None
    plan: _core.MaskPlan | None
    bias: FloatArray | None
    scale: float | None
    kv_lengths: Lengths
    modifiers: Modifiers | None

    def knows_positions(self) -> bool:
        """Whether something but the plan depends on where keys stand."""
        return self.pages is not None or (self.modifiers is not None and self.modifiers[2:4] != (None, None))


def prepare(
    q: Any,
    k: Any,
    v: Any,
    mask: MaskLike,
    bias: Any,
    scale: float | None,
    softcap: float,
    sinks: npt.ArrayLike | None,
    kv_lengths: Lengths,
    q_offset: Lengths,
    precision: str | None,
    threads: int | None,
) -> tuple[FloatArray, FloatArray, FloatArray, Arguments]:
    """(q, k, v, the other arguments); ``k`` is a cache's layer where ``v`` is None."""
    q, modifiers = borrowed("q", q), modifiers_of(bias, softcap, sinks, precision)
    layer, pages = layer_of(k, v, kv_lengths), None
    if layer is None:
        k, v = borrowed("k", k), borrowed("v", v)
        plan = None if mask is None and q_offset is None else _plan(mask, q, k, kv_lengths, q_offset, threads)
    else:
        k, v, pages, kv_lengths = stored(layer)
        plan = _plan_of_layer(mask, q, layer, kv_lengths, q_offset, threads)
    array = None if isinstance(bias, DistanceBias) else borrowed("bias", bias)
    return q, k, v, Arguments(pages, plan, array, scale, kv_lengths, modifiers)


def stored(layer: Any) -> tuple[FloatArray, FloatArray, tuple[Any, ...], Lengths]:
    """(keys, values, pages, kv_lengths) of a cache's layer, as the core takes them."""
    if not isinstance(layer.k_pool, np.ndarray):
        raise TypeError(
            "q must be a CUDA array, as the keys of the cache are, got one of the host; move it to the device, or pass "
            'device="cuda"'
        )
    shortest, longest = layer.extremes
    pages = (layer.tables, longest, layer.k_scales, layer.v_scales)
    return layer.k_pool, layer.v_pool, pages, longest if shortest >= longest else layer.lengths


def modifiers_of(bias: object, softcap: float, sinks: npt.ArrayLike | None, precision: str | None) -> Modifiers | None:
    """Softcap, sinks, a bias by distance as table and slopes, and the precision; None where there is none of them."""
    table, slopes = bias._lower() if isinstance(bias, DistanceBias) else (None, None)
    level = None if precision is None else precision_level(precision)
    if not softcap and sinks is None and table is None and slopes is None and level is None:
        return None
    return _softcap(softcap), None if sinks is None else _sinks(sinks), table, slopes, level


def precision_level(precision: object) -> int:
    """The core's number of a precision."""
    if not isinstance(precision, str):
        raise TypeError(f"precision must be one of {', '.join(PRECISIONS)}, got {type(precision).__name__}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS.index(precision)


def borrowed(name: str, array: Any) -> Any:
    """Arrays of other libraries as NumPy's over the same memory; what is none stays, and the core says so."""
    if array is None or isinstance(array, np.ndarray) or not _is_foreign(array):
        return array
    from maskattn.interop import borrow

    return borrow(name, array)


def _is_foreign(array: object) -> bool:
    return hasattr(array, "__dlpack__") or hasattr(array, "__cuda_array_interface__")


def layer_of(k: Any, v: Any, kv_lengths: Lengths) -> Any:
    """``k``, if it is a layer of a cache."""
    if not hasattr(k, "k_pool"):
        return None
    if v is not None and v is not k:
        raise TypeError(f"v must be left out where k is a layer of a cache, got {type(v).__name__}")
    if kv_lengths is not None:
        raise ValueError("kv_lengths must be left out where k is a layer of a cache, which knows them")
    return k


def _softcap(softcap: float) -> float:
    if not isinstance(softcap, (int, float, np.floating, np.integer)):
        raise TypeError(f"softcap must be a number, got {type(softcap).__name__}")
    if not (0 <= softcap < math.inf):
        raise ValueError(f"softcap must be at least 0 (0: no cap) and finite, got {softcap}")
    return float(softcap)


def _sinks(sinks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(borrowed("sinks", sinks))
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"sinks must be an array of numbers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"sinks must have shape (q_heads,), got {array.shape}")
    logits = np.ascontiguousarray(array, np.float64)
    if not (logits < math.inf).all():
        raise ValueError("sinks must be finite, or -inf for none, got inf or NaN")
    return logits


def _plan(
    mask: MaskLike, q: FloatArray, k: FloatArray, kv_lengths: Lengths, q_offset: Lengths, threads: int | None
) -> _core.MaskPlan | None:
    if isinstance(mask, _core.MaskPlan):
        return _agreeing(mask, kv_lengths, q_offset)
    if not all(isinstance(a, np.ndarray) and a.ndim == 4 for a in (q, k)):
        return None  # the core says what is wrong with them
    batch, heads, q_len, _ = q.shape
    return _core.make_plan(expr_of(mask), q_len, k.shape[2], batch, heads, q_offset, kv_lengths, threads)


def _plan_of_layer(
    mask: MaskLike, q: FloatArray, layer: Any, kv_lengths: Lengths, q_offset: Lengths, threads: int | None
) -> _core.MaskPlan | None:
    """As ``_plan``; keys that a ring no longer holds are hidden, and a plan that sees some of them is refused."""
    lost = bool(layer.begins.any())
    if isinstance(mask, _core.MaskPlan):
        plan = _agreeing(mask, kv_lengths, q_offset)
        if lost:
            check_held(plan, layer, threads)
        return plan
    if not (isinstance(q, np.ndarray) and q.ndim == 4) or (mask is None and q_offset is None and not lost):
        return None
    expr = held_alone(expr_of(mask), layer) if lost else expr_of(mask)
    batch, heads, q_len, _ = q.shape
    return _core.make_plan(expr, q_len, layer.kv_len, batch, heads, q_offset, kv_lengths, threads)


def held_alone(expr: _core.MaskExpr, layer: Any) -> _core.MaskExpr:
    """An expression without the keys that a layer no longer holds."""
    return _core.mask_and([expr, _core.mask_key_range(layer.begins, layer.lengths)])


def check_held(plan: _core.MaskPlan, layer: Any, threads: int | None) -> None:
    """A plan must not see keys that a layer no longer holds."""
    begins, lengths = layer.begins, layer.lengths
    if plan.batch == 1:  # for all sequences
        begins, lengths = begins.max(keepdims=True), lengths.max(keepdims=True)
    held = _core.mask_key_range(begins, lengths)
    geometry = (plan.batch, plan.heads, plan.q_offset, plan.kv_lengths)
    if not plan.is_subset(_core.make_plan(held, plan.q_len, plan.kv_len, *geometry, threads)):
        raise ValueError(
            f"mask must see only keys that the cache holds, from {layer.begins.tolist()} on, got a plan that sees "
            "earlier ones; pass the mask itself, or make the cache with a larger window"
        )


def _agreeing(plan: _core.MaskPlan, kv_lengths: Lengths, q_offset: Lengths) -> _core.MaskPlan:
    if not plan.agrees(kv_lengths, q_offset):
        raise ValueError(
            f"kv_lengths and q_offset must be those that the plan was made with, got {kv_lengths} and {q_offset}; "
            "leave them out, or pass the mask itself"
        )
    return plan


def expr_of(mask: MaskLike) -> _core.MaskExpr:
    """The expression of a mask that is no plan."""
    mask = borrowed("mask", mask)
    if isinstance(mask, np.ndarray):
        return _core.mask_dense(four_axes(mask))
    if mask is None or isinstance(mask, Mask):
        return (mask or Full()).expr
    raise TypeError(
        f"mask must be a Mask, a MaskPlan or a bool array (True = attend), got {type(mask).__name__}; "
        "see maskattn.masks"
    )
