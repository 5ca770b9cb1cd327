"""Fixtures that all tests share, and how hypothesis searches."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import maskattn

# Where the environment names an instruction set, the whole run is about that one.
FORCED_ISA = os.environ.get("MASKATTN_ISA")

settings.register_profile(
    "local",
    deadline=None,  # the first call of a process is slow
    max_examples=25,
    # The fixtures that property tests use (isa) hold no state that an example could change.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.register_profile("nightly", parent=settings.get_profile("local"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "local"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240303)


@pytest.fixture(params=[FORCED_ISA] if FORCED_ISA else maskattn.runnable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each instruction set that this machine can run."""
    if FORCED_ISA:
        assert maskattn.info()["isa"] == FORCED_ISA
        yield FORCED_ISA
        return
    before = maskattn.info()["isa"]
    maskattn.set_isa(request.param)
    yield request.param
    maskattn.set_isa(before)
