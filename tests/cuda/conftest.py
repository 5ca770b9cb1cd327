"""What runs on a device: a real one in a build with MASKATTN_CUDA, the host's in one with MASKATTN_EMULATE_CUDA."""

from __future__ import annotations

import pytest

from maskattn import cuda


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda.is_available():
        return
    why = "needs a CUDA device" if cuda.is_built() else "needs a build with MASKATTN_CUDA or MASKATTN_EMULATE_CUDA"
    for item in items:
        if "tests/cuda" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=why))
