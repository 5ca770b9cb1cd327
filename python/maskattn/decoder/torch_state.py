"""The tensors of a PyTorch ``state_dict``, by name; PyTorch itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.projection import Linear


class TorchState:
    """Tensors that are taken one by one. As a context manager: none may be left at the end.

    Args:
        state: name -> tensor or array.
        prefix: names without it are not looked at, and it is not part of the names here.
    """

    def __init__(self, state: Mapping[str, Any], prefix: str) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state must map names to tensors, got {type(state).__name__}; pass module.state_dict()")
        self._prefix = prefix
        self._tensors = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def __enter__(self) -> TorchState:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._tensors:
            raise ValueError(
                f"state must hold this layer's tensors only, got {', '.join(sorted(self._tensors))} besides; "
                "take the class of the same name, and a prefix if there are several layers"
            )

    def get(self, name: str) -> FloatArray | None:
        """A copy in float32, or None where there is no such tensor."""
        if name not in self._tensors:
            return None
        array = np.asarray(self._tensors.pop(name))
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise TypeError(f"{self._prefix}{name} must be floating, got {array.dtype}")
        return np.array(array, np.float32, order="C")

    def __getitem__(self, name: str) -> FloatArray:
        tensor = self.get(name)
        if tensor is None:
            raise ValueError(
                f"state must have {self._prefix}{name}, got {', '.join(sorted(self._tensors)) or 'nothing'} besides "
                "what was read; check the class and the prefix"
            )
        return tensor

    def linear(self, name: str) -> Linear:
        """``nn.Linear``, with or without a bias."""
        return Linear(self[f"{name}.weight"], self.get(f"{name}.bias"))

    def thirds(self, name: str) -> list[FloatArray] | None:
        """Three tensors of equal shape that are stored as one, or None where there is no such tensor."""
        fused = self.get(name)
        if fused is None:
            return None
        if fused.ndim == 0 or len(fused) % 3:
            raise ValueError(f"{self._prefix}{name} must have rows for q, k and v alike, got shape {fused.shape}")
        return np.split(fused, 3)
