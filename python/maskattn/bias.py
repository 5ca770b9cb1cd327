"""Biases that depend on the distance between key and query only: computed where they are needed, never as a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64] | int


class DistanceBias:
    """A score that a query head adds for the distance ``kv_pos - q_pos``."""

    def values(self, q_pos: Positions, kv_pos: Positions) -> DoubleArray:
        """The definition: float64 array (q_heads, *broadcast shape of the positions)."""
        raise NotImplementedError

    def _lower(self) -> tuple[DoubleArray | None, DoubleArray | None]:
        """What the core takes: per head, a table by distance from -reach to reach, and slopes per unit of distance."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ALiBi(DistanceBias):
    """``-slopes[h] * |kv_pos - q_pos|`` (arXiv:2108.12409; both directions as in flash-attn's ``alibi_slopes``).

    ``slopes``: shape (q_heads,). Models that add ``slope * kv_pos`` (BLOOM) get the same weights under a causal mask;
    their scores, and the LSE, differ by ``slope * q_pos``.

    >>> ALiBi([0.5]).values(2, np.arange(4)).tolist()
    [[-1.0, -0.5, -0.0, -0.5]]
    """

    slopes: DoubleArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "slopes", _floats("slopes", self.slopes, ("q_heads",)))

    @classmethod
    def for_heads(cls, q_heads: int) -> ALiBi:
        """The paper's slopes: 2**(-8 i / n) for n heads; where n is no power of two, the next lower power's, then every
        other one of the next higher power's.

        >>> ALiBi.for_heads(4).slopes.tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
        """
        if q_heads < 1:
            raise ValueError(f"q_heads must be at least 1, got {q_heads}")
        lower = 1 << (q_heads.bit_length() - 1)
        first = 2.0 ** (-8 * np.arange(1, lower + 1) / lower)
        rest = 2.0 ** (-4 * np.arange(1, 2 * (q_heads - lower), 2) / lower)
        return cls(np.concatenate([first, rest]))

    def values(self, q_pos: Positions, kv_pos: Positions) -> DoubleArray:
        distance = np.abs(np.subtract(kv_pos, q_pos))
        return np.asarray(-self.slopes.reshape(-1, *[1] * distance.ndim) * distance)

    def _lower(self) -> tuple[DoubleArray | None, DoubleArray | None]:
        return None, self.slopes


@dataclass(frozen=True, eq=False)
class RelativeBias(DistanceBias):
    """T5's learned bias by buckets of distance (arXiv:1910.10683; ``relative_attention_bias`` of a checkpoint).

    ``table``: shape (buckets, q_heads). ``bidirectional`` (encoders) gives half of the buckets to keys after the query;
    else such keys share the bucket of distance 0. Half of a direction's buckets are single distances, the others grow
    logarithmically up to ``max_distance``, beyond which all distances share the last.
    """

    table: DoubleArray
    bidirectional: bool = True
    max_distance: int = 128

    def __post_init__(self) -> None:
        table = _floats("table", self.table, ("buckets", "q_heads"))
        object.__setattr__(self, "table", table)
        least = 4 if self.bidirectional else 2
        if len(table) < least or len(table) % (least // 2):
            even = "an even number of buckets, at least 4" if self.bidirectional else "at least 2 buckets"
            raise ValueError(f"table must have {even}, got {len(table)}")
        if self.max_distance <= self._exact:
            raise ValueError(
                f"max_distance must be above the {self._exact} distances that have a bucket of their own, "
                f"got {self.max_distance}"
            )

    @property
    def _buckets(self) -> int:  # of one direction
        return len(self.table) // (2 if self.bidirectional else 1)

    @property
    def _exact(self) -> int:
        return self._buckets // 2

    def bucket(self, distance: Positions) -> npt.NDArray[np.int64]:
        """The bucket of ``kv_pos - q_pos``, an index into ``table``."""
        distance = np.asarray(distance)
        buckets, exact = self._buckets, self._exact
        if self.bidirectional:
            base, size = np.where(distance > 0, buckets, 0), np.abs(distance)
        else:
            base, size = np.zeros_like(distance), np.maximum(-distance, 0)
        # In float32 as the models were trained: the last place decides at a bucket's border.
        ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            np.log(self.max_distance / exact)
        )
        large = exact + (ratio * np.float32(buckets - exact)).astype(np.int64)
        return np.asarray(base + np.where(size < exact, size, np.minimum(large, buckets - 1)))

    def values(self, q_pos: Positions, kv_pos: Positions) -> DoubleArray:
        return np.moveaxis(self.table[self.bucket(np.subtract(kv_pos, q_pos))], -1, 0)

    def _lower(self) -> tuple[DoubleArray | None, DoubleArray | None]:
        by_distance = self.table[self.bucket(np.arange(-self.max_distance, self.max_distance + 1))]
        return np.ascontiguousarray(by_distance.T), None


#: What the ``bias`` of a layer may be.
BiasLike = npt.NDArray[Any] | DistanceBias | None


def _floats(name: str, value: Any, axes: tuple[str, ...]) -> DoubleArray:
    """A read-only float64 copy: biases are immutable."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be an array of numbers, got {array.dtype}")
    if array.ndim != len(axes):
        raise ValueError(
            f"{name} must have shape ({', '.join(axes)}{',' if len(axes) == 1 else ''}), got {array.shape}"
        )
    copy = array.astype(np.float64)
    if not np.isfinite(copy).all():
        raise ValueError(f"{name} must be finite; hide keys by a mask")
    copy.flags.writeable = False
    return copy
