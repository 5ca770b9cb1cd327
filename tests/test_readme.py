"""The README says what is true: its commands are the ones that CI runs, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_it_begins_with_the_two_commands() -> None:
    assert blocks("sh")[0].splitlines() == [
        'pip install . && maskattn generate "the 3rd of March, 2024"',
        'pip install ".[test]" && pytest',
    ]


def test_attention_masks_and_cache_run() -> None:
    names: dict[str, Any] = {}
    attention, masks, cache, *_ = blocks("python")
    for example in (attention, masks, cache):
        exec(example, names)
    assert names["weights"].shape == (2, 8, 1, 1000)
    assert names["out"].shape == (2, 8, 1, 64)
    assert names["cache"].lengths.tolist() == [1000, 1000]


@pytest.mark.parametrize("line", [line for line in blocks("python")[3].splitlines() if "load()" in line])
def test_generation_runs(line: str) -> None:
    import maskattn

    code, want = line.split("#")
    assert eval(code, {"maskattn": maskattn}) == eval(want)
