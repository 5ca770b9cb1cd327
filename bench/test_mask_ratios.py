"""mask_ratios.py in small: every way of every case gives the same mask, and every row can be printed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from bench import long_plan, mask_ratios, side_by_side

CASES = [
    (kind, name, prepare)
    for kind, cases in mask_ratios.kinds((512, 640), compiled=False).items()
    for name, prepare in cases.items()
]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("kind", "name", "prepare"), CASES, ids=[name for _, name, _ in CASES])
def test_case(kind: str, name: str, prepare: Any) -> None:
    head, check, cells = mask_ratios.TABLES[kind]
    [result] = side_by_side.run({name: prepare}, check, cells, threads=1, rounds=1)
    assert len(cells(result)) == len(head)
    assert all(cells(result))


def test_long_plan() -> None:
    found = long_plan.measure(5000, rounds=1)
    assert found["plan_mb"] is not None
    assert 0 < found["plan_mb"] < 1
