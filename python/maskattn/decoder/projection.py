"""The affine map of which layers are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskattn._core import PackedWeight
from maskattn.decoder.arrays import FloatArray
from maskattn.linear import linear


@dataclass(frozen=True, eq=False)
class Linear:
    """``x @ weight.T + bias``; ``weight`` (out_features, in_features), ``bias`` (out_features,) or None, float32.

    The weight may be packed (:func:`maskattn.linear.pack`).
    """

    weight: FloatArray | PackedWeight
    bias: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ValueError(f"weight must have shape (out_features, in_features), got {self.weight.shape}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"bias must have shape ({self.out_features},), got {self.bias.shape}")

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        return int(self.weight.shape[0])

    def __call__(self, x: FloatArray, activation: str | None = None) -> FloatArray:
        """(..., in_features) -> (..., out_features); ``activation``: the name of what is done with each sum."""
        return linear(x, self.weight, self.bias, activation)

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}{'' if self.bias is not None else ', bias=False'})"

    def rows(self, start: int, stop: int) -> Linear:
        """The map to outputs ``start`` to ``stop``, on the same memory."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


def stacked(parts: Sequence[Linear]) -> Linear:
    """Maps of the same input as one, whose outputs stand side by side."""
    bias = None
    if any(part.bias is not None for part in parts):
        bias = np.concatenate([np.zeros(p.out_features, np.float32) if p.bias is None else p.bias for p in parts])
    return Linear(_side_by_side([part.weight for part in parts]), bias)


def _side_by_side(weights: Sequence[FloatArray | PackedWeight]) -> FloatArray | PackedWeight:
    """All rows: of the memory that packed weights share, or copied.

    Raises:
        ValueError: they are not all arrays, or all packed in one dtype.
    """
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    arrays = [weight for weight in weights if not isinstance(weight, PackedWeight)]
    if not packed:
        return np.concatenate(arrays)
    kinds = [(weight.dtype, weight.group) for weight in packed]
    if arrays or len(set(kinds)) > 1:
        got = sorted({str(dtype) for dtype, _ in kinds} | ({"arrays"} if arrays else set()))
        raise ValueError(
            f"weights of one input must all be arrays or packed alike, got {', '.join(got)}; pack them alike"
        )
    if (whole := PackedWeight.joined(packed)) is not None:
        return whole
    dtype, group = kinds[0]
    if group:
        raise ValueError(
            f"weights of one input must lie in one memory in {dtype}, got {len(packed)}; pack them as one, take slices"
        )
    made = PackedWeight(sum(weight.shape[0] for weight in packed), packed[0].shape[1], dtype)
    first = 0
    for weight in packed:
        count = weight.shape[0]
        made.fill(first, weight.rows(np.arange(count)))
        first += count
    return made
