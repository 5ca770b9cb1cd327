"""Normalisations and their place around a residual branch, by the names that families use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskattn.decoder.arrays import FloatArray

#: (..., width) -> the same shape, new array.
Norm = Callable[[FloatArray], FloatArray]


def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray | None, eps: float) -> FloatArray:
    """Layer normalisation over the last axis (arXiv:1607.06450).

    Args:
        x: shape (..., width), float32.
        weight, bias: shape (width,), float32; ``bias`` may be None.
        eps: added to the variance, so that a constant row does not divide by zero.

    Returns:
        New array, shape and dtype of ``x``.
    """
    centred: FloatArray = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred *= weight / np.sqrt(variance + np.float32(eps))
    if bias is not None:
        centred += bias
    return centred


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """:func:`layer_norm` with its weights, each of shape (width,)."""

    weight: FloatArray
    bias: FloatArray | None = None
    eps: float = 1e-5

    def __call__(self, x: FloatArray) -> FloatArray:
        return layer_norm(x, self.weight, self.bias, self.eps)

    def __repr__(self) -> str:
        return f"LayerNorm({len(self.weight)}, eps={self.eps})"


@dataclass(frozen=True)
class Placement:
    """Whether a residual branch is normalised where it starts, and whether the sum is after it."""

    before: bool
    after: bool

    def __call__(self, x: FloatArray, norm: Norm, branch: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """``x`` plus ``branch`` of it, with ``norm`` where it belongs."""
        x = x + branch(norm(x) if self.before else x)
        return norm(x) if self.after else x


NORMS: dict[str, Callable[[FloatArray, FloatArray | None, float], Norm]] = {"layer": LayerNorm}
PLACEMENTS = {
    # The original Transformer (arXiv:1706.03762, section 3.1): norm(x + branch(x)).
    "post": Placement(before=False, after=True),
    # x + branch(norm(x)) (arXiv:2002.04745). A stack of such layers ends with one more norm, which is the stack's.
    "pre": Placement(before=True, after=False),
}
