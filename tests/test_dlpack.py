"""Arrays of other libraries come in and go out by DLPack: the same memory, freed once, not written if read-only."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dlpack_lender import COPIED, CUDA, READ_ONLY, Deleter, Lender, Unversioned, Versioned, capsule_name, managed_at
from maskattn import _core
from maskattn.interop import borrow, like

Array = Any

DTYPES = [
    np.dtype(kind)
    for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ml_dtypes.bfloat16)
]


def numbers(dtype: Any = np.float32) -> Array:
    return np.arange(24).reshape(2, 3, 4).astype(dtype)


def same_memory(got: Array, want: Array) -> None:
    assert got.dtype == want.dtype
    assert (got.shape, got.strides, got.ctypes.data) == (want.shape, want.strides, want.ctypes.data)
    assert got.flags.aligned
    assert np.array_equal(got, want)


# Borrowing


def test_a_numpy_array_is_itself() -> None:
    array = numbers()
    assert borrow("q", array) is array


@pytest.mark.parametrize("version", [None, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: Any, version: int | None) -> None:
    lender = Lender(numbers(dtype), version)
    same_memory(borrow("q", lender), lender.array)


@pytest.mark.parametrize("version", [None, 1])
@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a.transpose(2, 0, 1),
        lambda a: a[:, ::2, 1:],
        lambda a: a[::-1, :, ::-2],
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a[1, 2, 3],
        lambda a: a[:0],
        lambda a: a[:, 1:1, ::2],
    ],
    ids=["transposed", "steps", "reversed", "broadcast", "scalar", "no rows", "no columns"],
)
def test_any_strides(cut: Any, version: int | None) -> None:
    lender = Lender(np.asanyarray(cut(numbers())), version)
    same_memory(borrow("q", lender), lender.array)


def test_without_strides_it_is_in_c_order() -> None:
    lender = Lender(numbers(), None, strides=False)
    same_memory(borrow("q", lender), lender.array)


def test_the_offset_counts_bytes() -> None:
    array = numbers()
    lender = Lender(array[1], data=array.ctypes.data, byte_offset=array.strides[0])
    same_memory(borrow("q", lender), array[1])


def test_null_is_where_nothing_lies() -> None:
    got = borrow("q", Lender(numbers()[:, :0], data=None))
    assert (got.shape, got.dtype) == ((2, 0, 4), np.float32)


@pytest.mark.parametrize(
    ("version", "flags", "writeable"), [(1, 0, True), (1, READ_ONLY, False), (1, COPIED, False), (None, 0, False)]
)
def test_writeable_where_the_lender_says_so(version: int | None, flags: int, writeable: bool) -> None:
    lender = Lender(numbers(), version, flags)
    got = borrow("q", lender)
    assert got.flags.writeable == writeable
    if writeable:
        got[0, 0, 0] = 99
        assert lender.array[0, 0, 0] == 99
    else:
        with pytest.raises(ValueError, match="WRITEABLE"):
            got.flags.writeable = True


def test_the_newest_version_is_asked_for_first() -> None:
    new, old = Lender(numbers()), Lender(numbers(), None)
    borrow("q", new)
    borrow("q", old)
    assert new.calls == [{"max_version": (1, 1)}]
    assert old.calls == [{"max_version": (1, 1)}, {}]


@pytest.mark.parametrize("flags_writeable", [True, False])
def test_numpy_itself_lends(flags_writeable: bool) -> None:
    class OnlyDlpack:
        def __init__(self, array: Array) -> None:
            self.__dlpack__ = array.__dlpack__

    array = numbers()
    lender: Any = OnlyDlpack(array)
    if not flags_writeable:
        if np.lib.NumpyVersion(np.__version__) < "2.1.0":
            pytest.skip("this NumPy does not lend read-only arrays")
        array.flags.writeable = False
    same_memory(borrow("q", lender), array)
    assert not borrow("q", lender).flags.writeable or flags_writeable


# Who frees, and when


@pytest.mark.parametrize("version", [None, 1])
def test_the_memory_lives_as_long_as_the_array(version: int | None) -> None:
    lender = Lender(numbers(), version)
    array = borrow("q", lender)
    view = array[1:, ::2]
    del array
    gc.collect()
    assert lender.deleted == 0
    del view
    assert lender.deleted == 1


def test_an_array_without_elements_is_freed_too() -> None:
    for fields in ({}, {"data": None}):
        lender = Lender(numbers()[:0], **fields)
        borrow("q", lender)
        assert lender.deleted == 1


def test_no_deleter_is_nobody_to_call() -> None:
    lender = Lender(numbers())
    lender.deleter = Deleter()
    same_memory(borrow("q", lender), lender.array)


def test_freed_while_an_exception_passes() -> None:
    lender = Lender(numbers())

    def fail() -> None:
        array = borrow("q", lender)
        raise KeyError(array.shape)

    with pytest.raises(KeyError):
        fail()
    gc.collect()
    assert lender.deleted == 1


def test_freed_by_another_thread() -> None:
    lender = Lender(numbers())
    arrays = [borrow("q", lender) for _ in range(20)]
    threads = [threading.Thread(target=arrays.pop) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lender.deleted == 20


@pytest.mark.parametrize("version", [None, 1])
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"device_type": CUDA}, NotImplementedError, r"^q must be .* CPU's memory .*got a CUDA array; .*\.cpu\(\)"),
        ({"device_type": 8}, NotImplementedError, "^q must be .* got a Metal array"),
        ({"device_type": 10}, NotImplementedError, "^q must be .* got a ROCm array"),
        ({"device_type": 13}, NotImplementedError, "^q must be .* got a CUDA array"),  # managed: the GPU may be writing
        ({"device_type": 7}, NotImplementedError, "^q must be .* got an array on DLPack's device type 7"),
        ({"code": 10, "bits": 8}, TypeError, "^q must have a dtype .*got DLPack's type code 10 with 8 bits"),
        ({"bits": 24}, TypeError, "^q must have a dtype .*code 2 with 24 bits and 1 lanes"),
        ({"lanes": 4}, TypeError, "^q must have a dtype .*code 2 with 32 bits and 4 lanes"),
        ({"data": None}, ValueError, "^q must have memory"),
        # NumPy's refusal, which comes when the capsule has been taken
        ({"ndim": 70, "shape": (ctypes.c_int64 * 70)(*[1] * 70), "strides": None}, ValueError, "dimension"),
    ],
)
def test_refused_and_freed_once(
    fields: dict[str, Any], error: type[Exception], message: str, version: int | None
) -> None:
    lender = Lender(numbers(), version, **fields)
    with pytest.raises(error, match=message):
        borrow("q", lender)
    gc.collect()
    assert lender.deleted == 1


def test_pinned_memory_is_the_cpus() -> None:
    lender = Lender(numbers(), device_type=3)
    same_memory(borrow("q", lender), lender.array)


def test_a_later_major_version_is_not_read() -> None:
    lender = Lender(numbers(), 2)
    with pytest.raises(ValueError, match=r"^q must come as DLPack 0 or 1, got version 2"):
        borrow("q", lender)
    gc.collect()
    assert lender.deleted == 1


@pytest.mark.parametrize(("version", "used"), [(None, "used_dltensor"), (1, "used_dltensor_versioned")])
def test_a_capsule_is_taken_once(version: int | None, used: str) -> None:
    lender = Lender(numbers(), version)
    capsule = lender.__dlpack__()
    array = _core.from_dlpack(capsule, "q")
    assert capsule_name(capsule) == used
    with pytest.raises(TypeError, match=rf'^q\'s __dlpack__ must return an unused DLPack capsule, got .*"{used}"'):
        _core.from_dlpack(capsule, "q")
    del array, capsule
    assert lender.deleted == 1


# What cannot be borrowed


class Unlendable:
    def __init__(self, error: Exception, **attributes: Any) -> None:
        self.error = error
        self.__dict__.update(attributes)

    def __dlpack__(self, **_: Any) -> object:
        raise self.error


@pytest.mark.parametrize(
    ("obj", "error", "message"),
    [
        ([[1.0]], TypeError, r"^q must be a NumPy array, got list; pass np.asarray\(q\)"),
        (None, TypeError, "^q must be a NumPy array, got NoneType"),
        (np.float32(1), TypeError, "^q must be a NumPy array, got float32"),
        (SimpleNamespace(__cuda_array_interface__={}), NotImplementedError, "^q must be .*got a CUDA array"),
        (
            Unlendable(BufferError("sparse")),
            ValueError,
            r"^q must be .* lend by DLPack, got Unlendable \(sparse\); pass",
        ),
        (Unlendable(RuntimeError("no")), ValueError, r"^q must be .* lend by DLPack, got Unlendable \(no\)"),
        (
            Unlendable(BufferError("gradient"), requires_grad=True),
            ValueError,
            r"^q must not require grad, .*pass q.detach\(\)",
        ),
        (Unlendable(TypeError("a tracer")), TypeError, "a tracer"),
        (SimpleNamespace(__dlpack__=lambda **_: 3), TypeError, "^q's __dlpack__ must return .*capsule, got 3"),
    ],
)
def test_what_cannot_be_borrowed(obj: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        borrow("q", obj)


def test_a_lazy_minus_sign_is_refused() -> None:
    obj = SimpleNamespace(__dlpack__=lambda **_: None, is_neg=lambda: True)
    with pytest.raises(ValueError, match=r"^q must hold its own values, .*pass q.resolve_neg\(\)"):
        borrow("q", obj)


# Lending


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip(dtype: Any) -> None:
    for array in (numbers(dtype), numbers(dtype).transpose(2, 0, 1)[1:, :, ::-1], numbers(dtype)[:0]):
        got = borrow("q", _core.Exporter(array))
        same_memory(got, array)
        assert got.flags.writeable


def test_numpy_borrows_it() -> None:
    array = numbers()
    got: Any = np.from_dlpack(_core.Exporter(array))  # type: ignore[arg-type]
    same_memory(got, array)


def test_a_loan_keeps_the_array() -> None:
    array = numbers()
    alive = weakref.ref(array)
    exporter = _core.Exporter(array)
    capsules = [exporter.__dlpack__(), exporter.__dlpack__(max_version=(1, 0))]
    borrowed = _core.from_dlpack(capsules[0], "q")
    del array, exporter, capsules
    gc.collect()
    assert alive() is not None
    assert np.array_equal(borrowed, numbers())
    del borrowed
    assert alive() is None


@pytest.mark.parametrize("kind", [Unversioned, Versioned])
def test_a_loan_ends_without_the_gil(kind: type[ctypes.Structure]) -> None:
    """A borrower's thread need not be Python's. ctypes lets go of the GIL while it calls."""
    array = numbers()
    alive = weakref.ref(array)
    exporter = _core.Exporter(array)
    capsule = exporter.__dlpack__(max_version=(1, 0) if kind is Versioned else None)
    managed = managed_at(capsule, kind)
    address, deleter = ctypes.addressof(managed), ctypes.cast(managed.deleter, ctypes.c_void_p).value
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), b"used")
    del array, exporter, managed, capsule
    assert alive() is not None
    assert deleter
    thread = threading.Thread(target=Deleter(deleter), args=(address,))
    thread.start()
    thread.join()
    assert alive() is None


def test_a_read_only_array_is_lent_to_those_who_can_know() -> None:
    array = numbers()
    array.flags.writeable = False
    exporter = _core.Exporter(array)
    assert managed_at(exporter.__dlpack__(max_version=(1, 0)), Versioned).flags == READ_ONLY
    assert not borrow("q", exporter).flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        exporter.__dlpack__()
    assert capsule_name(exporter.__dlpack__(max_version=(1, 0), copy=True)) == "dltensor_versioned"


def test_a_copy_is_lent_where_one_is_asked_for() -> None:
    array = numbers()
    exporter = _core.Exporter(array)
    copy = _core.from_dlpack(exporter.__dlpack__(copy=True), "q")
    assert np.array_equal(copy, array)
    assert not np.shares_memory(copy, array)
    assert managed_at(exporter.__dlpack__(max_version=(1, 0), copy=True), Versioned).flags == COPIED


def test_the_device_is_the_cpu() -> None:
    exporter = _core.Exporter(numbers())
    assert exporter.__dlpack_device__() == (1, 0)
    assert capsule_name(exporter.__dlpack__(dl_device=(1, 0))) == "dltensor"
    with pytest.raises(BufferError, match="CPU"):
        exporter.__dlpack__(dl_device=(CUDA, 0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3, ">f4"), "no type for the dtype >f4"),
        (np.ones(3, "M8[s]"), "no type"),
        (np.ones(3, [("x", "f4")]), "no type"),
        (np.ones(3, "V0"), "no type"),
        (np.ones(3, ml_dtypes.float8_e4m3fn), "no type for the dtype float8_e4m3fn"),
        (np.ones((3, 3), [("x", "f4"), ("y", "i1")])["x"], "whole elements"),
    ],
)
def test_what_dlpack_cannot_say(array: Array, message: str) -> None:
    with pytest.raises(BufferError, match=message):
        _core.Exporter(array).__dlpack__()


# Like


class Ours:
    """An array of a library that follows the array API standard."""

    def __init__(self, array: Array, device_type: int = 1) -> None:
        self.array, self.device_type = array, device_type

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda x: Ours(borrow("x", x)))

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, 0


def test_like_numpy_is_the_array_itself() -> None:
    array = numbers()
    assert like(array, "numpy") is array
    assert like(array, np.ones(1)) is array


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_like_an_array_of_the_array_api(dtype: Any) -> None:
    array = numbers(dtype)
    got = like(array, Ours(np.ones(1)))
    assert isinstance(got, Ours)
    same_memory(got.array, array)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ([1.0], TypeError, "^like must be an array of .*got list"),
        ("torch", TypeError, "^like must be an array of .*got torch"),
        (Ours(np.ones(1), CUDA), NotImplementedError, "^like must be .*got a CUDA array"),
    ],
)
def test_like_what(model: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        like(numbers(), model)
