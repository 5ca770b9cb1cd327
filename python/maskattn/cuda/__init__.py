"""Attention and masks on CUDA devices, where the package was built with them.

CUDA arrays given to :func:`maskattn.attention` come here by themselves; ``device="cuda"`` moves NumPy arrays there and
back. Any array with ``__dlpack__`` or ``__cuda_array_interface__`` will do: PyTorch's, CuPy's, JAX's.
"""

from __future__ import annotations

from maskattn.cuda.module import NotBuilt, device_count, is_available, is_built

__all__ = ["NotBuilt", "device_count", "is_available", "is_built"]
