"""docs/masks.md has a section for each kind of mask, and is what its script writes."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from maskattn import masks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gallery() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "mask_gallery.py"))


def test_the_page_has_a_section_for_each_kind(gallery: dict[str, Any]) -> None:
    kinds = {kind.__name__ for name in masks.__all__ if isinstance(kind := getattr(masks, name), type)}
    missing = kinds - {"All", "Any", "Mask", "Not"} - {kind.name for kind in gallery["KINDS"]}
    assert not missing, f"add {missing} to examples/mask_gallery.py and run it"


def test_the_page_and_its_pictures_are_what_the_script_writes(gallery: dict[str, Any]) -> None:
    for name, text in gallery["texts"]().items():
        assert (ROOT / "docs" / name).read_text() == text, f"docs/{name} is old: run python examples/mask_gallery.py"


def test_pictures_are_small_and_used() -> None:
    page = (ROOT / "docs" / "masks.md").read_text()
    for path in (ROOT / "docs" / "masks").iterdir():
        assert path.stat().st_size < 40_000
        assert f"](masks/{path.name})" in page
