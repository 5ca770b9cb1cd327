"""Alignment pictures: every token is named, whatever it is written in, and nothing warns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn

SOURCE = ["▁the", "▁green", "</s>"]
ODD = ["東京", "$x^2$", "שלום", "नमस्ते", "a\nb", "\U000f0001", "", "_" * 40]


def weights(targets: int, sources: int, *leading: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(sources), size=(*leading, targets)).astype(np.float32)


# In the terminal


def test_names_of_sources_are_written_downwards() -> None:
    table = np.array([[1, 0, 0], [0, 0.6, 0.4]], np.float32)
    assert maskattn.draw_alignment(table, SOURCE, ["das", "grüne"], width=40, colour=False).splitlines() == [
        "       ▁",
        "       g",
        "      ▁r<",
        "      te/",
        "      hes",
        "      en>",
        "  das █",
        "grüne  ▒░",
    ]


def test_the_mean_over_layers_and_heads() -> None:
    whole = weights(2, 3, 4, 5)
    pictures = [maskattn.draw_alignment(w, SOURCE, ["a", "b"], colour=True) for w in (whole, whole.mean(axis=(0, 1)))]
    assert pictures[0] == pictures[1]
    assert "\x1b[48;5;" in pictures[0]


def test_wide_characters_get_two_places_and_others_get_numbers() -> None:
    table = np.eye(len(ODD), dtype=np.float32)
    lines = maskattn.draw_alignment(table, ODD, ODD, width=80, colour=False).splitlines()
    assert lines[-2:] == ["[1] = שלום", "[2] = नमस्ते"]
    rows = lines[-2 - len(ODD) : -2]
    for place, row in enumerate(rows):
        assert row.endswith("██")
        assert row.index("█") + (2 if "東" in row else 0) == 17 + 2 * place  # behind names of up to 16 places
    assert rows[0].lstrip().startswith("東京")
    assert rows[4].split()[0] == "a\\nb"
    assert rows[7].split()[0] == "_" * 15 + "…"


def test_columns_that_do_not_fit_follow() -> None:
    picture = maskattn.draw_alignment(weights(1, 50), ["ab"] * 50, ["x"], width=32, colour=False)
    assert [block.splitlines()[0].count("a") for block in picture.split("\n\n")] == [30, 20]


# By matplotlib


@pytest.fixture
def axes() -> Any:
    figure = pytest.importorskip("matplotlib.figure")
    return figure.Figure(figsize=(6, 6)).subplots()


def test_png_of_odd_tokens(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ax = maskattn.plot_alignment(weights(len(ODD), 3, 2), SOURCE, ODD, tmp_path / "odd.png")
    assert (tmp_path / "odd.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert len(names) == len(ODD)
    assert names[1] == "$x^2$"
    assert names[2] in ("שלום", "□" * 4)
    assert names[4:8] == ["a\\nb", "\\U000f0001", "", "_" * 15 + "…"]
    assert [label.get_text() for label in ax.get_xticklabels()] == SOURCE


def test_a_cell_is_a_weight_and_a_row_a_target(axes: Any) -> None:
    table = weights(2, 3)
    assert maskattn.plot_alignment(table, SOURCE, ["das", "grüne"], axes) is axes
    (image,) = axes.get_images()
    np.testing.assert_array_equal(image.get_array(), table)
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["das", "grüne"]


def test_more_tokens_than_labels_fit(axes: Any) -> None:
    maskattn.plot_alignment(weights(90, 200), [f"s{i}" for i in range(200)], [f"t{i}" for i in range(90)], axes)
    names = [label.get_text() for label in axes.get_xticklabels()]
    step = int(names[1][1:])
    assert 5 <= step <= 10
    assert names == [f"s{i}" for i in range(0, 200, step)]
    assert axes.get_xticks().tolist() == list(range(0, 200, step))


def test_a_new_figure() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    ax = maskattn.plot_alignment(weights(2, 3), SOURCE, ["a", "b"])
    assert ax.figure.number not in before
    pyplot.close(ax.figure)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"needs matplotlib; pip install 'maskattn\[plot\]'"):
        maskattn.plot_alignment(weights(2, 3), SOURCE, ["a", "b"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": weights(3, 2)}, ValueError, r"shape \(..., 2, 3\), target and source tokens, got \(3, 2\)"),
        ({"weights": np.zeros((0, 2, 3), np.float32)}, ValueError, r"shape \(..., 2, 3\).*got \(0, 2, 3\)"),
        ({"weights": np.full((2, 3), np.nan)}, ValueError, "weights must be finite"),
        ({"weights": [[1.0]]}, TypeError, "weights must be an array of floats, got list"),
        ({"source_tokens": "abc"}, TypeError, "source_tokens must be a list of str, got 'abc'"),
        ({"target_tokens": [1, 2]}, TypeError, r"target_tokens must be a list of str, got \[1, 2\]"),
    ],
)
@pytest.mark.parametrize("picture", ["draw_alignment", "plot_alignment"])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str, picture: str) -> None:
    right = {"weights": weights(2, 3), "source_tokens": SOURCE, "target_tokens": ["a", "b"]}
    with pytest.raises(error, match=message):
        getattr(maskattn, picture)(**{**right, **change})
