"""The package's types, as a user's mypy --strict sees them: right programs pass, and wrong lines are told by number."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import maskattn

pytest.importorskip("mypy", reason="the extra dev has it")

SAMPLES = Path(__file__).parent / "typing"
PACKAGE = Path(maskattn.__file__).parent
INSTALLED = PACKAGE.parent.name in ("site-packages", "dist-packages")


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """The lines at which mypy finds errors, by file."""
    # An installed package must be found as users' programs find theirs: through site-packages and its py.typed.
    path = {} if INSTALLED else {"MYPYPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary",
         "--cache-dir=.", str(SAMPLES / "ok.py"), str(SAMPLES / "bad.py")],
        capture_output=True, text=True, timeout=600, cwd=tmp_path_factory.mktemp("mypy"), env={**os.environ, **path},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        told = re.fullmatch(r"(.*):(\d+): (error|note): .*", line)
        assert told, line
        if told[3] == "error":
            found.setdefault(Path(told[1]).name, []).append(int(told[2]))
    return found


def test_right_programs_pass(errors: dict[str, list[int]]) -> None:
    assert errors.keys() == {"bad.py"}  # nor is there one inside the package


def test_right_programs_run() -> None:
    runpy.run_path(str(SAMPLES / "ok.py"))


def test_wrong_lines_are_told(errors: dict[str, list[int]]) -> None:
    lines = (SAMPLES / "bad.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("  # error")}
    assert len(marked) > 40
    assert set(errors["bad.py"]) == marked


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()
    assert (PACKAGE / "_cuda.pyi").is_file()  # whether built or not
