"""Where a call runs: on the device and the stream of whoever owns the arrays, with results of the owner's kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.cuda.module import compiled, load

CUDA_DEVICES = 2, 13  # DLPack's numbers: memory of a device, and memory that it shares with the host
LEGACY_STREAM = 1  # the default stream, in DLPack and in CUDA itself
PER_THREAD_STREAM = 2  # the same of each thread


class Kind:
    """Whose arrays: how their stream is found, and new ones are made. This one asks the array API standard and CUDA's
    array interface; what has neither gets arrays of ours, which have both interfaces."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def stream(self, device: int) -> int:
        interface = None if hasattr(self.model, "__dlpack__") else self.model.__cuda_array_interface__
        return (interface or {}).get("stream") or LEGACY_STREAM

    def empty(self, shape: tuple[int, ...], dtype: str, place: Place) -> tuple[Any, compiled.Array]:
        """(what will be returned, our view of it)."""
        ours = compiled.empty(shape, dtype, place.stream)
        return ours, ours

    def finished(self, array: Any) -> Any:
        """What ``empty`` has returned, as the caller wants it, when the work on it has been launched."""
        if hasattr(self.model, "__array_namespace__"):
            return self.model.__array_namespace__().from_dlpack(array)
        return array


class Torch(Kind):
    def stream(self, device: int) -> int:
        return sys.modules["torch"].cuda.current_stream(device).cuda_stream or LEGACY_STREAM

    def empty(self, shape: tuple[int, ...], dtype: str, place: Place) -> tuple[Any, compiled.Array]:
        torch: Any = sys.modules["torch"]
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.model.device)
        return tensor, place.borrow("out", tensor)

    def finished(self, array: Any) -> Any:
        return array


class CuPy(Kind):
    def stream(self, device: int) -> int:
        return sys.modules["cupy"].cuda.get_current_stream(device).ptr or LEGACY_STREAM

    def empty(self, shape: tuple[int, ...], dtype: str, place: Place) -> tuple[Any, compiled.Array]:
        array = sys.modules["cupy"].empty(shape, self.model.dtype if dtype == "bfloat16" else dtype)
        return array, place.borrow("out", array)

    def finished(self, array: Any) -> Any:
        return array


class NumPy(Kind):
    """Arrays of the host: results are copied there, and waited for."""

    def stream(self, device: int) -> int:
        return LEGACY_STREAM

    def finished(self, array: Any) -> Any:
        return to_host(array)


def kind_of(array: Any) -> Kind:
    """The kind of an array of a device, or of a NumPy array."""
    if isinstance(array, np.ndarray):
        return NumPy(array)
    for module, name, kind in (("torch", "Tensor", Torch), ("cupy", "ndarray", CuPy)):
        library: Any = sys.modules.get(module)  # not imported: who has its array has imported it
        if library is not None and isinstance(array, getattr(library, name)):
            return kind(array)
    return Kind(array)


@dataclass(frozen=True)
class Place:
    """A device, and the stream that work is ordered on."""

    device: int
    stream: int
    name: str  # of the argument that decided it

    @contextmanager
    def current(self) -> Iterator[None]:
        """Its device is the thread's current one meanwhile."""
        before = compiled.current_device()
        if before == self.device:
            yield
            return
        compiled.set_device(self.device)
        try:
            yield
        finally:
            compiled.set_device(before)

    def keeps(self) -> bool:
        """Whether what is made on the stream may be kept for later calls.

        Not where a graph is captured, which must have its own, nor where the stream is another one in each thread.
        """
        return self.stream != PER_THREAD_STREAM and not compiled.is_capturing(self.stream)

    def borrow(self, name: str, obj: Any) -> compiled.Array:
        """``obj`` as an array of ours over the same memory, ready for work on the stream.

        Raises:
            TypeError: it is no array, or of a dtype that is not known. ValueError: it is on another device, or its
            library cannot lend it.
        """
        if isinstance(obj, compiled.Array):
            ours = self._here(name, obj)
            compiled.wait_for(self.stream, ours.stream)
            return ours
        if isinstance(obj, np.ndarray) or not (hasattr(obj, "__dlpack__") or hasattr(obj, "__cuda_array_interface__")):
            raise TypeError(
                f"{name} must be a CUDA array, as {self.name} is, got {type(obj).__name__}; move all arrays to the "
                'device, or pass NumPy arrays with device="cuda"'
            )
        if not hasattr(obj, "__dlpack__"):
            interface = obj.__cuda_array_interface__
            device = compiled.device_of(interface["data"][0])
            if device != self.device:
                raise self._elsewhere(name, f"cuda:{device}")
            return compiled.from_interface(interface, obj, name, self.device, self.stream)
        kind, device = obj.__dlpack_device__()
        if kind not in CUDA_DEVICES or device != self.device:
            where = f"cuda:{device}" if kind in CUDA_DEVICES else f"DLPack's device {(int(kind), device)}"
            raise self._elsewhere(name, where)
        # A library that works on another stream, or on one that it keeps to itself, as JAX, may give memory that it
        # gets back to others before we have read it.
        library = kind_of(obj)
        reuses = type(library) is Kind or library.stream(self.device) != self.stream
        return compiled.from_dlpack(self._capsule(name, obj), name, self.stream, reuses)

    def _here(self, name: str, array: compiled.Array) -> compiled.Array:
        if array.device != self.device:
            raise self._elsewhere(name, f"cuda:{array.device}")
        return array

    def _elsewhere(self, name: str, where: str) -> ValueError:
        here = f"cuda:{self.device}, where {self.name} is"
        return ValueError(f"{name} must be on {here}, got an array on {where}; move it there")

    def _capsule(self, name: str, obj: Any) -> object:
        if hasattr(obj, "is_neg") and obj.is_neg():  # PyTorch's lazy minus sign is not in the memory
            raise ValueError(
                f"{name} must hold its own values, got a tensor with the negative bit; pass {name}.resolve_neg()"
            )
        try:
            try:
                return obj.__dlpack__(stream=self.stream, max_version=(1, 1))
            except TypeError:  # a library from before DLPack 1.0
                return obj.__dlpack__(stream=self.stream)
        except (BufferError, RuntimeError, ValueError) as error:
            if getattr(obj, "requires_grad", False):
                raise ValueError(
                    f"{name} must not require grad, got a tensor that does; pass {name}.detach()"
                ) from error
            raise ValueError(
                f"{name} must be an array that its library can lend by DLPack, got {type(obj).__name__} ({error})"
            ) from error

    def to_device(self, array: npt.NDArray[Any]) -> compiled.Array:
        """A NumPy array's copy on the device."""
        host = np.ascontiguousarray(array).reshape(np.shape(array))
        return compiled.to_device(host, host.dtype.name, self.stream)


def place_of(name: str, array: Any) -> Place:
    """Where an array is, and its library works."""
    wanted = f"{name} must be a NumPy array or in the CPU's memory"
    load(wanted, "a CUDA array", "copy the array to the host (PyTorch: .cpu())")
    if isinstance(array, compiled.Array):
        return Place(array.device, array.stream, name)
    if hasattr(array, "__dlpack_device__"):
        device = array.__dlpack_device__()[1]
    else:
        device = compiled.device_of(array.__cuda_array_interface__["data"][0])
    return Place(device, kind_of(array).stream(device), name)


def named_place(device: object) -> Place:
    """The place of ``device="cuda"`` or ``"cuda:1"``, on the default stream."""
    if not isinstance(device, str):
        raise TypeError(f'device must be "cuda" or "cuda:" and a number, got {type(device).__name__}')
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise ValueError(f'device must be "cuda" or "cuda:" and a number, got {device!r}; leave it out for the CPU')
    load("device must be None", repr(device), "leave it out for the CPU")
    count = compiled.device_count()
    if count <= int(number or 0):
        raise RuntimeError(f"device must be one of the {count} CUDA devices of this machine, got {device!r}")
    return Place(int(number) if number else compiled.current_device(), LEGACY_STREAM, "device")


def to_host(array: compiled.Array) -> npt.NDArray[Any]:
    """A NumPy array's copy of an array of ours; waits for the work on it."""
    import ml_dtypes

    name = array.dtype
    host: npt.NDArray[Any] = np.empty(array.shape, ml_dtypes.bfloat16 if name == "bfloat16" else name)
    compiled.to_host(array, host, array.stream)
    return host
