"""The one matrix product of the decoder: every projection multiplies here."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn._core import PackedWeight

FloatArray = npt.NDArray[np.float32]
#: Of packed weights.
DTYPES = ("float32", "bfloat16", "int8", "int4", "uint4")


def linear(
    x: FloatArray,
    weight: FloatArray | PackedWeight,
    bias: FloatArray | None = None,
    activation: str | None = None,
) -> FloatArray:
    """Affine map ``x @ weight.T + bias`` over the last axis.

    The bits of a row of the result depend on that row of ``x`` alone: NumPy's product promises no such thing, and a
    token would depend on what else is in its batch. A weight packed as float32 gives the bits of the array.

    Args:
        x: shape (..., in_features), float32.
        weight: shape (out_features, in_features): float32, as checkpoints store it, or packed.
        bias: shape (out_features,), float32, or None.
        activation: of each sum, before it is written: "relu", "silu", "gelu", "gelu_tanh", "quick_gelu" or "tanh".

    Returns:
        New array, shape (..., out_features), float32.

    Raises:
        TypeError: an argument is not a float32 array.
        ValueError: the last axes of ``x`` and ``weight`` differ, ``bias`` is not one value per output, or the
            activation is not known.
    """
    _check_floats("x", x)
    if not isinstance(weight, PackedWeight):
        _check_floats("weight", weight)
    if bias is not None:
        _check_floats("bias", bias)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight must have shape (out_features, in_features) with in_features = x.shape[-1], "
            f"got weight {weight.shape} and x {x.shape}; transpose a weight stored as (in, out)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {bias.shape}; pass one value per output")
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if isinstance(weight, PackedWeight):
        out = _core.packed_linear(weight, rows, bias, None, activation)
    else:
        out = _core.linear(rows, weight, bias, None)
        if activation is not None:
            out = _core.activate(activation, out, False, None)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _check_floats(name: str, array: object) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        got = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be a NumPy array of float32, got {got}; pass np.asarray({name}, np.float32)")


def pack(weight: FloatArray, dtype: str = "float32", group: int = 32) -> PackedWeight:
    """A weight matrix in blocks that products read from front to back, once.

    Args:
        weight: shape (out_features, in_features), float32.
        dtype: "float32"; "bfloat16", rounded to nearest, and so are activations where the instruction set multiplies
            bfloat16 numbers (AVX512-BF16); "int8": each output has 8-bit integers and a factor, its largest absolute
            value / 127; "int4": each ``group`` inputs of an output are ``(q - 8) * scale``, q from 0 to 15, the largest
            of them at 0; "uint4": ``(q - zero) * scale``, from the least to the largest of them and 0; scales and zeros
            are float16. With integers each row of activations is rounded to 8 bits, if that loses at most
            1.25% of it (root mean squares), else to 16.
        group: inputs with one scale in 4 bits, a multiple of 32.

    Returns:
        The packed weight: ``linear`` multiplies with it, ``weight[start:stop]`` is some of its outputs on the same
        memory, ``rows(indices)`` are rows as it has them.

    Raises:
        TypeError: ``weight`` is not a float32 array, or ``group`` not an int.
        ValueError: it has not two axes, or the dtype is none of those, or ``group`` no multiple of 32 up to 1024; or a
            number is not finite and to become an integer, or in 4 bits is above 500,000.
    """
    _check_floats("weight", weight)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if weight.ndim != 2:
        raise ValueError(f"weight must have shape (out_features, in_features), got {weight.shape}")
    if not isinstance(group, int):
        raise TypeError(f"group must be an int, got {type(group).__name__}; pass 32")
    if dtype not in ("float32", "bfloat16"):
        most = float(np.abs(weight).max(initial=0))
        if not most <= (5e5 if dtype in ("int4", "uint4") else np.inf) or most == np.inf:
            raise ValueError(f"weight must be finite, and below 500,000 in 4 bits, got {most}; pack it as bfloat16")
    packed = PackedWeight(weight.shape[0], weight.shape[1], dtype, group)
    packed.fill(0, weight)
    return packed
