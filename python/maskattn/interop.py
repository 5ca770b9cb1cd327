"""Arrays of other libraries in and out, by DLPack (https://dmlc.github.io/dlpack/latest/python_spec.html)."""

from __future__ import annotations

import sys
from typing import Any, Literal, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from maskattn import _core

_CUDA = 2  # DLPack's number


class SupportsDLPack(Protocol):
    """An array that its library lends by DLPack: NumPy's, PyTorch's, JAX's, ..."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


Kind = TypeVar("Kind", bound=SupportsDLPack)


def borrow(name: str, obj: Any) -> npt.NDArray[Any]:
    """``obj`` as a NumPy array over the same memory, which lives as long as the array does; nothing is copied.

    Args:
        name: of the argument, for errors.
        obj: a NumPy array, which is returned as it is, or any object with ``__dlpack__`` in the CPU's memory: a
            PyTorch tensor, a JAX array, ... Any strides and shape; bool, integers, float16, bfloat16 (as
            ``ml_dtypes.bfloat16``), float32, float64 or complex.

    Returns:
        Array of ``obj``'s shape and dtype. It is read-only where the library says so, where it lends a copy, and where
        it speaks DLPack 0.x, which cannot say (JAX, whose arrays are immutable, does).

    Raises:
        TypeError: ``obj`` is no array, or of a dtype that NumPy cannot hold.
        ValueError: its library cannot lend it, for instance because it requires grad.
        NotImplementedError: it is on another device.
    """
    if isinstance(obj, np.ndarray):
        return obj
    if not hasattr(obj, "__dlpack__"):
        if hasattr(obj, "__cuda_array_interface__"):
            _core.require_host(name, _CUDA)
        raise TypeError(f"{name} must be a NumPy array, got {type(obj).__name__}; pass np.asarray({name})")
    if hasattr(obj, "is_neg") and obj.is_neg():
        # PyTorch's lazy minus sign (of ``x.conj().imag``) is not in the memory, and its DLPack export forgets it.
        raise ValueError(
            f"{name} must hold its own values, got a tensor with the negative bit; pass {name}.resolve_neg()"
        )
    try:
        capsule = _capsule(obj)
    except (BufferError, RuntimeError, ValueError) as error:
        if getattr(obj, "requires_grad", False):
            raise ValueError(f"{name} must not require grad, got a tensor that does; pass {name}.detach()") from error
        raise ValueError(
            f"{name} must be an array that its library can lend by DLPack, got {type(obj).__name__} ({error}); "
            "pass a NumPy array"
        ) from error
    return _core.from_dlpack(capsule, name)


@overload
def like(array: npt.NDArray[Any], model: Literal["numpy"]) -> npt.NDArray[Any]: ...
@overload
def like(array: npt.NDArray[Any], model: Kind) -> Kind: ...
def like(array: npt.NDArray[Any], model: Any) -> Any:
    """``array`` as an array of ``model``'s library, over the same memory where that library can.

    Args:
        array: of a dtype that :func:`borrow` takes, in this machine's byte order.
        model: "numpy", or an example: a NumPy array, a PyTorch tensor, or an array with ``__array_namespace__``
            (JAX and other libraries of the Python array API standard). Its shape and dtype do not matter.

    Returns:
        A NumPy array, a ``torch.Tensor``, ... that keeps the memory alive. JAX copies memory that is not aligned to 64
        bytes, and rounds 64 bits to 32 unless ``jax_enable_x64`` is set.

    Raises:
        TypeError: ``model`` is neither.
        NotImplementedError: ``model`` is on another device than the CPU.
    """
    if isinstance(model, np.ndarray) or (isinstance(model, str) and model == "numpy"):
        return array
    torch: Any = sys.modules.get("torch")  # not imported: who has a tensor has imported it
    if torch is not None and isinstance(model, torch.Tensor):
        from_dlpack = torch.from_dlpack
    elif hasattr(model, "__array_namespace__"):
        from_dlpack = model.__array_namespace__().from_dlpack
    else:
        raise TypeError(
            f"like must be an array of NumPy, PyTorch or a library with __array_namespace__, or 'numpy', got "
            f"{model if isinstance(model, str) else type(model).__name__}; leave it out for a NumPy array"
        )
    _core.require_host("like", model.__dlpack_device__()[0])
    return from_dlpack(_core.Exporter(array))


def _capsule(obj: Any) -> object:
    try:
        return obj.__dlpack__(max_version=(1, 1))
    except TypeError:  # a library from before DLPack 1.0
        return obj.__dlpack__()
