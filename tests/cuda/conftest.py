"""What runs on a device: a real one in a build with MASKATTN_CUDA, the host's in one with MASKATTN_EMULATE_CUDA."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from maskattn import cuda
from maskattn.cuda.module import load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda.is_available():
        return
    why = "needs a CUDA device" if cuda.is_built() else "needs a build with MASKATTN_CUDA or MASKATTN_EMULATE_CUDA"
    for item in items:
        if "tests/cuda" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(params=[80, 90])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the test with the kernels of each kind of device, where devices are emulated; else with this device's."""
    module = load()
    if not module.emulated:
        if request.param != 80:
            pytest.skip("a device has its own kernels")
        yield
        return
    before = module.emulate(request.param)
    yield
    module.emulate(before)
