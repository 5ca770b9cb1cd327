"""The compiled module ``_cuda``, loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["NotBuilt", "compiled", "device_count", "is_available", "is_built", "load"]

_BUILD = "pip install . -C cmake.define.MASKATTN_CUDA=ON"


class NotBuilt(ImportError, NotImplementedError):
    """The package was built without its CUDA kernels."""


def load(wanted: str = "arrays must be in the CPU's memory", got: str = "CUDA", remedy: str = "stay on the CPU") -> Any:
    """The module.

    Args:
        wanted, got, remedy: what the error says where it was not built: what should have been there instead, what
            was, and what helps besides a build.

    Raises:
        NotBuilt: the package was built without CUDA.
    """
    try:
        return importlib.import_module("maskattn._cuda")
    except ImportError as error:
        if error.name not in (None, "maskattn._cuda"):
            raise
        raise NotBuilt(
            f"{wanted}, as maskattn was built without CUDA, got {got}; build it with nvcc 12.4 or newer ({_BUILD}), or "
            f"{remedy}"
        ) from error


class _OnFirstUse:
    """Stands for the module, which is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # those that look at modules ask for them
            raise AttributeError(name)
        found = getattr(load(), name)
        setattr(self, name, found)
        return found


if TYPE_CHECKING:
    from maskattn import _cuda as compiled
else:
    compiled = _OnFirstUse()


def is_built() -> bool:
    """Whether the package was built with its CUDA kernels."""
    try:
        load()
    except NotBuilt:
        return False
    return True


def device_count() -> int:
    """CUDA devices that can be used: 0 without a driver, or without the kernels."""
    return compiled.device_count() if is_built() else 0


def is_available() -> bool:
    """Whether there is a device, and the kernels for it."""
    return device_count() > 0
