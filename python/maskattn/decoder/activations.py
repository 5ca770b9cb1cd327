"""Feed-forward activations, by the names that config.json uses. All map float32 to new float32 of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from maskattn import _core
from maskattn.decoder.arrays import FloatArray

Activation = Callable[[FloatArray], FloatArray]
_NUMBERS = ("relu", "silu", "gelu", "gelu_tanh", "quick_gelu", "tanh")


@dataclass(frozen=True)
class CoreActivation:
    """A function of the core, element by element; the bits of an element depend on that element only."""

    name: str

    @property
    def number(self) -> int:
        """The core's number of it (maskattn/elementwise.hpp)."""
        return _NUMBERS.index(self.name)

    def __call__(self, x: FloatArray) -> FloatArray:
        return _core.activate(self.name, x, False, None)

    def gated(self, both: FloatArray) -> FloatArray:
        """(..., 2 * width) -> (..., width): the function of the first half, times the second half."""
        return _core.activate(self.name, both, True, None)


#: max(x, 0).
relu = CoreActivation("relu")
#: x * sigmoid(x), also called swish (arXiv:1710.05941).
silu = CoreActivation("silu")
#: x * P(Z <= x) for a standard normal Z (arXiv:1606.08415), within 5e-7: the exact form and not the tanh approximation.
gelu = CoreActivation("gelu")
#: The tanh approximation of ``gelu`` (arXiv:1606.08415, section 2).
gelu_tanh = CoreActivation("gelu_tanh")
#: x * sigmoid(1.702 x), the sigmoid approximation of ``gelu`` (arXiv:1606.08415, section 2).
quick_gelu = CoreActivation("quick_gelu")
#: Hyperbolic tangent.
tanh = CoreActivation("tanh")


def identity(x: FloatArray) -> FloatArray:
    """x itself."""
    return x


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
