"""The program in small."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import maskattn
from bench.engine import WAYS, arrivals_of, measure


def test_every_way_serves_all() -> None:
    model = maskattn.load()  # the date model
    found = measure(model, arrivals_of(model, 5, 4.0))
    assert list(found) == list(WAYS)
    assert all(value > 0 for row in found.values() for value in row.values())
