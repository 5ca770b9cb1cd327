"""Devices, opened once each, and where cuBLASLt may be."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from maskattn.cuda.module import compiled
from maskattn.cuda.places import named_place

#: Of NVIDIA's packages, from the newest: nvidia-cublas for CUDA 13, nvidia-cublas-cu12.
_IN_PACKAGES = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")


def open_device(name: str) -> compiled.DecoderDevice:
    """The device "cuda", the current one, or "cuda:1"; the models on a device share a stream.

    Raises:
        TypeError, ValueError: it is called otherwise.
        ImportError: the package was built without CUDA.
        RuntimeError: there is no such device, or no cuBLASLt.
    """
    return _opened(named_place(name).device)


@cache
def _opened(number: int) -> compiled.DecoderDevice:
    return compiled.DecoderDevice(number, _candidates())


def _candidates() -> list[str]:
    """Files of cuBLASLt that NVIDIA's packages have installed."""
    nvidia = find_spec("nvidia")
    folders = [] if nvidia is None or nvidia.submodule_search_locations is None else nvidia.submodule_search_locations
    files = [Path(folder) / name for folder in folders for name in _IN_PACKAGES]
    return [str(file) for file in files if file.is_file()]
