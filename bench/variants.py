"""What numbers are: the dtype of arrays and, for float32, how coarsely it may be multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Variant:
    """``tolerance`` is on the norm of the error over the norm of the result, for standard normal inputs.

    ``products`` of bfloat16 numbers make one of this accuracy where a matrix unit multiplies: a float32 is the sum of
    three bfloat16 numbers, and the six largest products of two such sums count; of two numbers, three do.
    """

    name: str
    dtype: Any
    precision: str
    tolerance: float
    products: int


FLOAT32 = Variant("float32", np.float32, "highest", 2e-6, 6)
HIGH = Variant("float32 high", np.float32, "high", 2e-5, 3)
MEDIUM = Variant("float32 medium", np.float32, "medium", 1e-2, 1)
BFLOAT16 = Variant("bfloat16", ml_dtypes.bfloat16, "highest", 1e-2, 1)
FLOAT16 = Variant("float16", np.float16, "highest", 1e-3, 6)
VARIANTS = {v.name: v for v in (FLOAT32, HIGH, MEDIUM, BFLOAT16, FLOAT16)}
