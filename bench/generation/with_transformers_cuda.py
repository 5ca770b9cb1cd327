"""``transformers`` over PyTorch on a CUDA device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.generation import with_transformers


class Side(with_transformers.Side):
    def __init__(self, path: Path, dtype: str, device: str) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
        self.device = device
        super().__init__(path, dtype, torch.get_num_threads())

    def load(self, path: Path, dtype: str) -> Any:
        return super().load(path, dtype).to(self.device)

    def inputs(self, sources: Any) -> tuple[dict[str, Any], int]:
        given, before = super().inputs(sources)
        return {name: array.to(self.device) for name, array in given.items()}, before
