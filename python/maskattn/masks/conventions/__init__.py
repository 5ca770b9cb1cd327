"""Masks as other libraries write them, in and out. The first line of each docstring says polarity and window unit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskattn.masks.conventions.additive import from_additive
    from maskattn.masks.conventions.flash import from_flash_attn
    from maskattn.masks.conventions.hf import from_hf, to_hf
    from maskattn.masks.conventions.jax import from_jax
    from maskattn.masks.conventions.keras import from_keras, to_keras
    from maskattn.masks.conventions.linter import Finding, Report, check
    from maskattn.masks.conventions.onnx import from_onnx, to_onnx
    from maskattn.masks.conventions.torch_mha import from_torch_mha, to_torch_mha
    from maskattn.masks.conventions.torch_sdpa import from_torch_sdpa, to_torch_sdpa

__all__ = [
    "Finding",
    "Report",
    "check",
    "from_additive",
    "from_flash_attn",
    "from_hf",
    "from_jax",
    "from_keras",
    "from_onnx",
    "from_torch_mha",
    "from_torch_sdpa",
    "to_hf",
    "to_keras",
    "to_onnx",
    "to_torch_mha",
    "to_torch_sdpa",
]

_MODULES = {"Finding": "linter", "Report": "linter", "check": "linter", "from_flash_attn": "flash"}


if not TYPE_CHECKING:  # or any name would pass for one of ours

    def __getattr__(name: str) -> Any:
        # Each is imported on first use: attention alone must not pay for them.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _MODULES.get(name) or name.removeprefix("from_").removeprefix("to_")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
