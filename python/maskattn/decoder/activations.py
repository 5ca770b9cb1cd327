"""Feed-forward activations, by the names that config.json uses. All map float32 to new float32 of the same shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maskattn.decoder.arrays import FloatArray

Activation = Callable[[FloatArray], FloatArray]


def relu(x: FloatArray) -> FloatArray:
    """max(x, 0)."""
    positive: FloatArray = np.maximum(x, np.float32(0))
    return positive


def silu(x: FloatArray) -> FloatArray:
    """x * sigmoid(x), also called swish (arXiv:1710.05941)."""
    # exp(-|x|) cannot overflow; the two quotients are sigmoid(x) on either side of zero.
    decay = np.exp(-np.abs(x))
    product: FloatArray = x * np.where(x >= 0, np.float32(1), decay) / (1 + decay)
    return product


def gelu(x: FloatArray) -> FloatArray:
    """x * P(Z <= x) for a standard normal Z (arXiv:1606.08415), the exact form and not the tanh approximation."""
    product: FloatArray = np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5))))
    return product


def gelu_tanh(x: FloatArray) -> FloatArray:
    """The tanh approximation of :func:`gelu` (arXiv:1606.08415, section 2)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    product: FloatArray = np.float32(0.5) * x * (1 + np.tanh(inner))
    return product


def quick_gelu(x: FloatArray) -> FloatArray:
    """x * sigmoid(1.702 x), the sigmoid approximation of :func:`gelu` (arXiv:1606.08415, section 2)."""
    product: FloatArray = silu(np.float32(1.702) * x) / np.float32(1.702)
    return product


def tanh(x: FloatArray) -> FloatArray:
    """Hyperbolic tangent."""
    value: FloatArray = np.tanh(x)
    return value


def identity(x: FloatArray) -> FloatArray:
    """x itself."""
    return x


def erf(x: FloatArray) -> FloatArray:
    """Error function, within 2e-7 + float32 rounding: Abramowitz and Stegun, formula 7.1.26 (NumPy has none)."""
    magnitude: FloatArray = np.abs(x)
    t: FloatArray = np.reciprocal(1 + np.float32(0.3275911) * magnitude)
    polynomial: FloatArray = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial = polynomial * t + np.float32(coefficient)
    value: FloatArray = np.copysign(1 - polynomial * t * np.exp(-magnitude * magnitude), x)
    return value


ACTIVATIONS: dict[str, Activation] = {
    "relu": relu,
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "quick_gelu": quick_gelu,
    "tanh": tanh,
    "linear": identity,
}


def activation(key: str, name: object) -> Activation:
    """The activation called ``name``, which stands under ``key``.

    Raises:
        ValueError: it is not known.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"{key} must be one of {', '.join(sorted(ACTIVATIONS))}, got {name!r}; "
            "add it to maskattn/decoder/activations.py"
        )
    return ACTIVATIONS[name]
