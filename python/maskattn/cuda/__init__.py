"""Attention and masks on CUDA devices, where the package was built with them.

CUDA arrays given to :func:`maskattn.attention` come here by themselves; ``device="cuda"`` moves NumPy arrays there and
back. Any array with ``__dlpack__`` or ``__cuda_array_interface__`` will do: PyTorch's, CuPy's, JAX's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskattn.cuda.arrays import plan
from maskattn.cuda.module import NotBuilt, device_count, is_available, is_built, load

if TYPE_CHECKING:
    from maskattn._cuda import Array, Plan

__all__ = ["Array", "NotBuilt", "Plan", "device_count", "is_available", "is_built", "plan"]


def __getattr__(name: str) -> Any:
    if name in ("Array", "Plan"):  # of the compiled module
        return getattr(load(), name)
    raise AttributeError(f"module 'maskattn.cuda' has no attribute {name!r}")
