"""A library that lends its memory by DLPack, made of ctypes: any field can be set, deletions are counted."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_API = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _API)
)
# A capsule that is being destroyed must not be touched as an object: its address then.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _API))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _API))
_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", _API))

Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_FRESH = b"dltensor", b"dltensor_versioned"
_loans: dict[int, tuple[Lender, ctypes.Structure]] = {}  # by address; a second deletion finds nothing and is an error

CPU, CUDA = 1, 2
READ_ONLY, COPIED = 1, 2
CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "c": 5, "b": 6}  # V: ml_dtypes.bfloat16


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Unversioned(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", Deleter)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p), ("deleter", Deleter),
        ("flags", ctypes.c_uint64), ("tensor", Tensor),
    ]  # fmt: skip


def capsule_name(capsule: object) -> str:
    return str(_name(capsule), "ascii")


def managed_at(capsule: object, kind: type[ctypes.Structure]) -> Any:
    """What a capsule of that kind holds."""
    return kind.from_address(_pointer(id(capsule), _name(capsule)))


@Deleter
def _delete(managed: int) -> None:
    _loans.pop(managed)[0].deleted += 1


@_Destructor
def _destroy(capsule: int) -> None:
    for name in _FRESH:
        if _is_valid(capsule, name):  # nobody has taken it
            _delete(_pointer(capsule, name))


class Lender:
    """Lends ``array``; ``version`` None is DLPack 0.x. ``fields`` are a tensor's, instead of what the array says."""

    def __init__(
        self, array: np.ndarray[Any, Any], version: int | None = 1, flags: int = 0, strides: bool = True, **fields: Any
    ) -> None:
        self.array, self.version, self.flags = array, version, flags
        self.deleter = _delete
        self.deleted = 0
        self.calls: list[dict[str, Any]] = []  # the arguments of __dlpack__
        longs = ctypes.c_int64 * array.ndim
        self._shape, self._strides = longs(*array.shape), longs(*(step // array.itemsize for step in array.strides))
        self._fields = {
            "data": array.ctypes.data, "device_type": CPU, "ndim": array.ndim, "code": CODES[array.dtype.kind],
            "bits": 8 * array.itemsize, "lanes": 1, "shape": self._shape, "strides": self._strides if strides else None,
        } | fields  # fmt: skip

    def __dlpack__(self, **options: Any) -> object:
        self.calls.append(options)
        if self.version is None and options:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        tensor = Tensor(**self._fields)
        managed: Any
        if self.version is None:
            managed = Unversioned(tensor, None, self.deleter)
        else:
            managed = Versioned(self.version, 0, None, self.deleter, self.flags, tensor)
        address = ctypes.addressof(managed)
        _loans[address] = self, managed
        name = _FRESH[self.version is not None]
        return _new_capsule(address, name, ctypes.cast(_destroy, ctypes.c_void_p))
