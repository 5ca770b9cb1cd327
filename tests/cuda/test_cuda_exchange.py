"""Arrays that cross between libraries by DLPack and the CUDA array interface: whose memory it is, and until when."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_arrays import Interface, back, lent, on_device

from dlpack_lender import COPIED, CUDA, READ_ONLY, Lender, Unversioned, Versioned, capsule_name, managed_at
from maskattn.cuda.module import compiled, load
from maskattn.cuda.places import LEGACY_STREAM, PER_THREAD_STREAM, named_place

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.bool_, np.int32, np.int64, np.uint8]


def numbers(dtype: Any = np.float32) -> Any:
    return np.arange(24).reshape(2, 3, 4).astype(dtype)


def borrow(lender: Any) -> Any:
    capsule = lender.__dlpack__()  # its end calls Python, which must not be while an exception is on its way
    return load().from_dlpack(capsule, "q", LEGACY_STREAM)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_there_and_back(dtype: Any) -> None:
    ours = on_device(numbers(dtype))
    assert (ours.dtype, ours.shape, ours.strides) == (np.dtype(dtype).name, (2, 3, 4), (12, 4, 1))
    for options in ({}, {"max_version": (1, 1)}):
        again = load().from_dlpack(ours.__dlpack__(stream=LEGACY_STREAM, **options), "q", LEGACY_STREAM)
        assert again.pointer == ours.pointer
        assert back(again).tobytes() == numbers(dtype).tobytes()
    if dtype is ml_dtypes.bfloat16:
        assert not hasattr(ours, "__cuda_array_interface__")
    else:
        theirs = named_place("cuda").borrow("q", Interface(ours))
        assert (theirs.dtype, theirs.shape, theirs.strides) == (ours.dtype, ours.shape, ours.strides)


@pytest.mark.parametrize("version", [None, 1])
def test_what_a_lender_says(version: int | None) -> None:
    lender = Lender(numbers().transpose(2, 0, 1), version, device_type=CUDA)
    got = borrow(lender)
    assert (got.shape, got.strides, got.device, got.read_only) == ((4, 2, 3), (1, 12, 4), 0, False)
    assert got.pointer == lender.array.ctypes.data
    assert borrow(Lender(numbers(), version, strides=False, device_type=CUDA)).strides == (12, 4, 1)
    assert borrow(Lender(numbers()[:0], version, data=None, device_type=CUDA)).size == 0


@pytest.mark.parametrize("flags", [READ_ONLY, COPIED])
def test_what_may_not_be_written(flags: int) -> None:
    assert borrow(Lender(numbers(), 1, flags, device_type=CUDA)).read_only


@pytest.mark.parametrize("version", [None, 1])
def test_memory_is_given_back_once(version: int | None) -> None:
    lender = Lender(numbers(), version, device_type=CUDA)
    got = borrow(lender)
    lent_on = got.__dlpack__(stream=LEGACY_STREAM)
    del got
    gc.collect()
    assert lender.deleted == 0
    del lent_on  # nobody took it
    gc.collect()
    assert lender.deleted == 1


@pytest.mark.parametrize("version", [None, 1])
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"device_type": 1}, ValueError, r"^q must be a CUDA array, got one on DLPack's device type 1"),
        ({"device_type": 10}, ValueError, r"^q must be a CUDA array, got one on DLPack's device type 10"),
        ({"device_type": CUDA, "data": None}, ValueError, r"^q must have memory"),
    ],
)
def test_what_is_refused_is_given_back(fields: Any, error: Any, message: str, version: int | None) -> None:
    lender = Lender(numbers(), version, **fields)
    with pytest.raises(error, match=message):
        borrow(lender)
    gc.collect()
    assert lender.deleted == 1


def test_a_capsule_is_taken_once() -> None:
    capsule = on_device(numbers()).__dlpack__(stream=LEGACY_STREAM)
    load().from_dlpack(capsule, "q", LEGACY_STREAM)
    assert capsule_name(capsule) == "used_dltensor"
    with pytest.raises(TypeError, match=r"^q's __dlpack__ must return an unused DLPack capsule"):
        load().from_dlpack(capsule, "q", LEGACY_STREAM)
    with pytest.raises(ValueError, match=r"^q must come as DLPack 0 or 1, got version 2"):
        borrow(Lender(numbers(), 2, device_type=CUDA))


def test_what_we_say() -> None:
    ours = on_device(numbers())
    assert ours.__dlpack_device__() == (CUDA, 0)
    capsules = ours.__dlpack__(stream=-1, max_version=(1, 0)), ours.__dlpack__()
    new: Any = managed_at(capsules[0], Versioned)
    assert (new.major, new.flags, new.tensor.device_type, new.tensor.device_id) == (1, 0, CUDA, 0)
    old: Any = managed_at(capsules[1], Unversioned)
    assert new.tensor.data == old.tensor.data == ours.pointer
    read_only = borrow(Lender(numbers(), 1, READ_ONLY, device_type=CUDA))
    capsule = read_only.__dlpack__(max_version=(1, 0))
    assert managed_at(capsule, Versioned).flags == READ_ONLY
    for options in ({"dl_device": (1, 0)}, {"copy": True}):
        with pytest.raises(BufferError):
            ours.__dlpack__(**options)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"typestr": ">f4"},
            TypeError,
            r"^q must have a dtype of numbers or bool in this machine's byte order, got >f4",
        ),
        ({"strides": (48, 16, 6)}, ValueError, r"^q must have strides of whole elements"),
        ({"mask": SimpleNamespace()}, ValueError, r"^q must not have a mask"),
    ],
)
def test_interfaces_that_cannot_be_taken(fields: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        named_place("cuda").borrow("q", Interface(on_device(numbers()), **fields))


def test_who_may_use_memory_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = named_place("cuda"), list[bool]()
    monkeypatch.setattr(compiled, "from_dlpack", lambda *given: asked.append(given[-1]))
    array = lent(numbers())
    place.borrow("q", array)
    current = SimpleNamespace(get_current_stream=lambda device: SimpleNamespace(ptr=0))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=type(array), cuda=current))
    place.borrow("q", array)
    replace(place, stream=PER_THREAD_STREAM).borrow("q", array)
    assert asked == [True, False, True]


def test_memory_is_given_back_when_it_has_been_read() -> None:
    lender = Lender(numbers(), device_type=CUDA)
    got = load().from_dlpack(lender.__dlpack__(), "q", LEGACY_STREAM, True)
    del got
    gc.collect()
    assert lender.deleted == 1


def test_an_interface_does_not_say_which_device_it_is_of() -> None:
    elsewhere = replace(named_place("cuda:0"), device=1)
    with pytest.raises(ValueError, match=r"^q must be on cuda:1, where device is, got an array on cuda:0"):
        elsewhere.borrow("q", Interface(on_device(numbers())))


def test_an_interface_keeps_its_array() -> None:
    lender = Lender(numbers(), device_type=CUDA)
    taken = named_place("cuda").borrow("q", Interface(borrow(lender)))
    gc.collect()
    assert lender.deleted == 0
    del taken
    gc.collect()
    assert lender.deleted == 1
