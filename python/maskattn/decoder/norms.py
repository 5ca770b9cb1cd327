"""Normalisations and their place around a residual branch, by the names that families use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from maskattn import _core
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
    return _core.layer_norm(x, weight, bias, eps, None)


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


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis (arXiv:1910.07467); ``weight`` of shape (width,)."""

    weight: FloatArray
    eps: float = 1e-6

    def __call__(self, x: FloatArray) -> FloatArray:
        return _core.rms_norm(x, self.weight, self.eps, None)

    def __repr__(self) -> str:
        return f"RMSNorm({len(self.weight)}, eps={self.eps})"


Branch = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Placement:
    """Where norms stand around residual branches.

    ``before``: a branch is normalised where it starts. ``after``: the sum is. ``inside``: what the branch adds is, by a
    norm of its own. ``parallel``: all branches of a layer start from the same ``x``.
    """

    before: bool
    after: bool
    inside: bool = False
    parallel: bool = False

    def __call__(self, x: FloatArray, norm: Norm, branch: Branch) -> FloatArray:
        """``x`` plus ``branch`` of it, with ``norm`` where it belongs."""
        x = x + branch(norm(x) if self.before else x)
        return norm(x) if self.after else x

    def layer(self, x: FloatArray, *branches: tuple[Norm, Branch]) -> FloatArray:
        """All branches of a layer, one after another or side by side."""
        if self.parallel:
            # Summed from the last: the order of additions that models with parallel branches were trained with.
            parts = [branch(norm(x)) for norm, branch in branches]
            return sum(parts[-2::-1], parts[-1]) + x
        for norm, branch in branches:
            x = self(x, norm, branch)
        return x


@dataclass(frozen=True)
class NormKind:
    """How a norm is made of its tensors: ``make(weight, bias, eps)``; ``biased``: the file has a bias."""

    make: Callable[[FloatArray, FloatArray | None, float], Norm]
    biased: bool = False


NORMS = {
    "layer": NormKind(LayerNorm, biased=True),
    # No tensors in the file at all: weight one, bias zero.
    "layer without weights": NormKind(LayerNorm),
    "rms": NormKind(lambda weight, bias, eps: RMSNorm(weight, eps)),
    # The file holds what the factor is beyond one (Gemma).
    "rms plus one": NormKind(lambda weight, bias, eps: RMSNorm(1 + weight, eps)),
}
PLACEMENTS = {
    # The original Transformer (arXiv:1706.03762, section 3.1): norm(x + branch(x)).
    "post": Placement(before=False, after=True),
    # x + branch(norm(x)) (arXiv:2002.04745). A stack of such layers ends with one more norm, which is the stack's.
    "pre": Placement(before=True, after=False),
    # x + norm(branch(norm(x))) (Gemma 2, arXiv:2408.00118).
    "sandwich": Placement(before=True, after=False, inside=True),
    # x + attention(norm(x)) + feed_forward(norm(x)) (arXiv:2204.06745, section 2.1).
    "parallel": Placement(before=True, after=False, parallel=True),
}
