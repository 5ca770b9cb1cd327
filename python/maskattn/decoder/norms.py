"""Normalisations and their place around a residual branch, by the names that families use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskattn.decoder.arrays import FloatArray


def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray, eps: float) -> FloatArray:
    """Layer normalisation over the last axis (arXiv:1607.06450).

    Args:
        x: shape (..., width), float32.
        weight, bias: shape (width,), float32.
        eps: added to the variance, so that a constant row does not divide by zero.

    Returns:
        New array, shape and dtype of ``x``.
    """
    centred: FloatArray = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred *= weight / np.sqrt(variance + np.float32(eps))
    centred += bias
    return centred


@dataclass(frozen=True)
class Placement:
    """Whether a residual branch is normalised where it starts, and whether the sum is after it."""

    before: bool
    after: bool


NORMS: dict[str, Callable[[FloatArray, FloatArray, FloatArray, float], FloatArray]] = {"layer": layer_norm}
# "post" is the original Transformer (arXiv:1706.03762, section 3.1): norm(x + branch(x)).
PLACEMENTS = {"post": Placement(before=False, after=True)}
