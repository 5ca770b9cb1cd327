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

# Examples a property: one that compares a few things, and test_mask_properties.py, which compares a mask with its
# definition in every way there is. What that one tests is the same on every instruction set but for attention, so a
# run that is about a lesser one does not repeat all of it. "slow" is for interpreters that are: emulated, sanitized.
EXAMPLES = {"local": 25, "ci": 25, "slow": 5, "nightly": 5000}
MASK_EXAMPLES = {"local": 300, "ci": 300 if FORCED_ISA else 5000, "slow": 50, "nightly": 50_000}

profile = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "local")
for name, examples in EXAMPLES.items():
    settings.register_profile(
        name,
        max_examples=examples,
        derandomize=name in ("ci", "slow"),
        deadline=None,  # the first call of a process is slow
        # The fixtures that property tests use (isa) hold no state that an example could change.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.register_profile("masks", parent=settings.get_profile(profile), max_examples=MASK_EXAMPLES[profile])
settings.load_profile(profile)


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
