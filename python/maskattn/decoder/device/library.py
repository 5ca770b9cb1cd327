"""The compiled module for CUDA, and where cuBLASLt may be."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskattn.cuda.module import NotBuilt
from maskattn.cuda.places import named_place

#: Of NVIDIA's packages, from the newest: nvidia-cublas for CUDA 13, nvidia-cublas-cu12.
_IN_PACKAGES = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")


def module() -> Any:
    """``maskattn._cuda``.

    Raises:
        ImportError: the package was built without it.
    """
    try:
        return import_module("maskattn._cuda")
    except ImportError as error:
        raise NotBuilt(
            f'device="cuda" needs the CUDA kernels, got {error}; build them with nvcc 12.4 or newer: '
            "pip install . -C cmake.define.MASKATTN_CUDA=ON"
        ) from error


def open_device(name: str) -> Any:
    """The device "cuda", the current one, or "cuda:1"; the models on a device share a stream.

    Raises:
        ValueError: it is called otherwise.
        ImportError: the package was built without CUDA.
        RuntimeError: there is no such device, or no cuBLASLt.
    """
    if isinstance(name, str) and name.startswith("cuda"):
        module()
    return _opened(named_place(name).device)


@cache
def _opened(number: int) -> Any:
    return module().DecoderDevice(number, _candidates())


def _candidates() -> list[str]:
    """Files of cuBLASLt that NVIDIA's packages have installed."""
    nvidia = find_spec("nvidia")
    folders = [] if nvidia is None or nvidia.submodule_search_locations is None else nvidia.submodule_search_locations
    files = [Path(folder) / name for folder in folders for name in _IN_PACKAGES]
    return [str(file) for file in files if file.is_file()]
