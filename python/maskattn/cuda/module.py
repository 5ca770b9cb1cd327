"""The compiled module ``_cuda``, loaded on first use."""

from __future__ import annotations

import importlib
from typing import Any

_BUILD = "pip install . -C cmake.define.MASKATTN_CUDA=ON"


class NotBuilt(ImportError, NotImplementedError):
    """The package was built without its CUDA kernels."""


def load(name: str, got: str = "a CUDA array") -> Any:
    """The module; NotBuilt, an error of the argument ``name``, where it was not built."""
    try:
        return importlib.import_module("maskattn._cuda")
    except ImportError as error:
        if error.name not in (None, "maskattn._cuda"):
            raise
        raise NotBuilt(
            f"{name} must be a NumPy array or in the CPU's memory, as maskattn was built without CUDA, got {got}; "
            f"build it with nvcc 12.4 or newer ({_BUILD}), or copy the array to the host (PyTorch: .cpu())"
        ) from error


def is_built() -> bool:
    """Whether the package was built with its CUDA kernels."""
    try:
        load("device")
    except NotBuilt:
        return False
    return True


def device_count() -> int:
    """CUDA devices that can be used: 0 without a driver, or without the kernels."""
    return int(load("device").device_count()) if is_built() else 0


def is_available() -> bool:
    """Whether there is a device, and the kernels for it."""
    return device_count() > 0
