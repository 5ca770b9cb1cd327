from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask
from maskattn.masks.edges import MOST_EDGES, Edges
from maskattn.masks.parameters import size


@dataclass(frozen=True)
class Neighborhood(Mask):
    """The ``kernel`` cells nearest to the query's on a grid of ``shape`` (arXiv:2204.07143): 1-D or 2-D, row by row.

    At the edges the window is pushed inside, so that every query sees as many keys. Positions past the grid see
    nothing and are not seen.

    >>> Neighborhood(3, 4).to_bool(4, 4).astype(int).tolist()
    [[[[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]]]]
    """

    kernel: int | tuple[int, int]
    shape: int | tuple[int, int]

    def __post_init__(self) -> None:
        kernel, shape = _two("kernel", self.kernel), _two("shape", self.shape)
        if np.ndim(self.kernel) != np.ndim(self.shape):
            raise ValueError(f"kernel must have as many numbers as shape, {self.shape}, got {self.kernel}")
        if kernel[0] > shape[0] or kernel[1] > shape[1]:
            raise ValueError(f"kernel must fit in shape {self.shape}, got {self.kernel}")
        line = np.ndim(self.kernel) == 0
        object.__setattr__(self, "kernel", kernel[1] if line else kernel)
        object.__setattr__(self, "shape", shape[1] if line else shape)

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        kernel, shape = _two("kernel", self.kernel), _two("shape", self.shape)
        inside = np.greater_equal(q_pos, 0) & np.less(q_pos, shape[0] * shape[1]) & np.less(kv_pos, shape[0] * shape[1])
        for query, key, width, extent in zip(
            np.divmod(q_pos, shape[1]), np.divmod(kv_pos, shape[1]), kernel, shape, strict=True
        ):
            first = np.clip(query - width // 2, 0, extent - width)
            inside = inside & (key >= first) & (key < first + width)
        return np.asarray(inside)

    def _edges(self) -> Edges | None:
        (lines, width), (height, columns) = _two("shape", self.shape), _two("kernel", self.kernel)
        if lines > 1:
            if lines * width > MOST_EDGES:
                return None
            cells = range(lines * width + 1)
            return Edges(keys=cells, queries=cells, spans=height)
        before = columns // 2
        return Edges(keys=(columns, width - columns, width), queries=(0, width), ahead=(-before, columns - before))

    def _lower(self) -> _core.MaskExpr:
        return _core.mask_neighborhood(_two("shape", self.shape), _two("kernel", self.kernel))


def _two(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """A line is a grid of one row."""
    numbers = (1, value) if np.ndim(value) == 0 else tuple(value)  # type: ignore[arg-type]
    if len(numbers) != 2:
        raise ValueError(f"{name} must be one number or two, got {value}")
    return size(name, numbers[0]), size(name, numbers[1])
