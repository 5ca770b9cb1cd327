"""Masked attention for NumPy on the CPU, and a thin decoder that generates text with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskattn import _core, masks
from maskattn._core import MaskPlan
from maskattn.attention import attention, attention_weights
from maskattn.runtime import get_cmake_dir, get_include, info, num_threads, runnable_isas, set_isa, set_num_threads
from maskattn.varlen import attention_varlen, repad, unpad
from maskattn.version import __version__

if TYPE_CHECKING:
    from maskattn.decoder import Model, load

__all__ = [
    "MaskPlan",
    "Model",
    "__version__",
    "attention",
    "attention_varlen",
    "attention_weights",
    "get_cmake_dir",
    "get_include",
    "info",
    "load",
    "masks",
    "num_threads",
    "repad",
    "runnable_isas",
    "set_isa",
    "set_num_threads",
    "unpad",
]

_core.current_isa()  # an unusable MASKATTN_ISA is an error of the import, not of the first call


if not TYPE_CHECKING:  # or any name would pass for one of ours

    def __getattr__(name: str) -> Any:
        # The decoder is imported on first use: attention alone must not pay for it.
        if name in ("load", "Model"):
            from maskattn import decoder

            return getattr(decoder, name)
        raise AttributeError(f"module 'maskattn' has no attribute {name!r}")
