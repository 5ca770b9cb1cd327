"""The one matrix product of the decoder: every projection multiplies here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskattn import _core

FloatArray = npt.NDArray[np.float32]


def linear(x: FloatArray, weight: FloatArray, bias: FloatArray | None = None) -> FloatArray:
    """Affine map ``x @ weight.T + bias`` over the last axis.

    The bits of a row of the result depend on that row of ``x`` alone: NumPy's product promises no such thing, and a
    token would depend on what else is in its batch.

    Args:
        x: shape (..., in_features), float32.
        weight: shape (out_features, in_features), float32, as checkpoints store it.
        bias: shape (out_features,), float32, or None.

    Returns:
        New array, shape (..., out_features), float32.

    Raises:
        ValueError: the last axes of ``x`` and ``weight`` differ, or ``bias`` is not one value per output.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight must have shape (out_features, in_features) with in_features = x.shape[-1], "
            f"got weight {weight.shape} and x {x.shape}; transpose a weight stored as (in, out)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {bias.shape}; pass one value per output")
    out = _core.linear(x.reshape(-1, x.shape[-1]), weight, bias, None)
    return out.reshape(*x.shape[:-1], weight.shape[0])
