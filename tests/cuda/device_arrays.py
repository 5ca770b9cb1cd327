"""Two libraries of arrays on the device: one lends by DLPack, one by the CUDA array interface; memory is ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.cuda.module import load
from maskattn.cuda.places import LEGACY_STREAM, to_host

Array = npt.NDArray[Any]


class Lent:
    """An array of a library that speaks DLPack and the array API standard, on the default stream."""

    def __init__(self, ours: Any) -> None:
        self.ours = ours
        self.streams: list[int] = []  # that borrowers asked for

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
        assert stream is not None, "a borrower says on which stream it works"
        self.streams.append(stream)
        return self.ours.__dlpack__(stream=stream, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.ours.__dlpack_device__()  # type: ignore[no-any-return]

    def __array_namespace__(self) -> type[Namespace]:
        return Namespace


class Namespace:
    @staticmethod
    def from_dlpack(lender: Any) -> Lent:
        return Lent(load().from_dlpack(lender.__dlpack__(stream=LEGACY_STREAM), "x", LEGACY_STREAM))


class Interface:
    """An array of a library that knows the CUDA array interface only, as Numba does."""

    def __init__(self, ours: Any, **fields: Any) -> None:
        self.ours = ours
        self.__cuda_array_interface__ = ours.__cuda_array_interface__ | fields


def lent(array: Any) -> Lent:
    return Lent(on_device(array))


def on_device(array: Any) -> Any:
    """A copy of ``array`` on the device, of its strides where they are those of some transposed array."""
    array = np.asarray(array)
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    dense = array.transpose(order).copy()  # C order
    ours = load().to_device(dense, dense.dtype.name, LEGACY_STREAM)
    if order == list(range(array.ndim)):
        return ours
    back = np.argsort(order)
    interface = ours.__cuda_array_interface__
    fields = {name: tuple(interface[name][axis] for axis in back) for name in ("shape", "strides")}
    return load().from_interface(interface | fields, ours, "x", 0, LEGACY_STREAM)


def back(array: Any) -> Array:
    """What a device array holds."""
    ours = array if hasattr(array, "pointer") else array.ours
    host: Array = to_host(ours)
    return host
