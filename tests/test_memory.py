"""What a loaded model keeps in memory, and what loading needs on the way, in processes of their own.

What such a process keeps besides the weights of the embedded model is taken off: Python, NumPy and the package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import maskattn
from tiny_families import config, write

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps what was freed"),
]

MB = 1 << 20
#: Of the allocator and of whoever else counts pages.
NOISE = 3 * MB
#: Of the file, and as floats, while a weight is packed.
PIECES = 6 * MB
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 4.5 / 8}  # a number, scales of 4-bit groups among them
SETTINGS = {
    "marian": {"vocab_size": 12_000, "d_model": 512}
    | {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 2048))},
    "gpt2": {"vocab_size": 12_000, "n_embd": 512, "n_layer": 2},  # stores (inputs, outputs)
}
EMBEDDED = Path(maskattn.__file__).parent / "data" / "dates" / "model.safetensors"
SCRIPT = """
import sys, maskattn
folder, dtype, task = sys.argv[1:]
maskattn.set_num_threads(2)
if task == "load":
    model = maskattn.load(folder or None, dtype=dtype or None)
    for _ in range(3):
        model.generate_ids([[3, 4, 5]], max_new_tokens=4)
else:
    maskattn.convert(folder or None, task, dtype=dtype or None)
print(open("/proc/self/status").read())
"""


class Kept(NamedTuple):
    """Bytes: resident in the end, resident at most, and of those in the end what is of no file."""

    resident: int
    peak: int
    own: int


def measured(folder: object, dtype: str, task: object) -> Kept:
    command = [sys.executable, "-c", SCRIPT, str(folder), dtype, str(task)]
    status = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return Kept(*(int(status.split(f"{name}:")[1].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon")))


def beyond(kept: Kept, base: Kept) -> Kept:
    """What is kept more than by a process of the embedded model, as if that had no weights."""
    return Kept(*(now - then + EMBEDDED.stat().st_size for now, then in zip(kept, base, strict=True)))


@pytest.fixture(scope="module")
def embedded() -> Kept:
    return measured("", "", "load")


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    return write(tmp_path_factory.mktemp(family), config(family, **SETTINGS[family]))


def weights_of(path: Path, dtype: str) -> float:
    return (path / "model.safetensors").stat().st_size / 4 * BYTES[dtype]


@pytest.mark.parametrize("dtype", BYTES)
def test_weights_are_in_memory_once(path: Path, dtype: str, embedded: Kept) -> None:
    kept, weights = beyond(measured(path, dtype, "load"), embedded), weights_of(path, dtype)
    assert kept.resident < 1.15 * weights + NOISE
    assert kept.peak < 1.15 * weights + NOISE + PIECES


def test_packed_weights_are_the_pages_of_the_file(path: Path, tmp_path: Path, embedded: Kept) -> None:
    maskattn.convert(path, tmp_path / "packed", dtype="int8")
    kept, weights = beyond(measured(tmp_path / "packed", "", "load"), embedded), weights_of(path, "int8")
    assert 0.5 * weights < kept.resident < 1.15 * weights + NOISE
    assert kept.own < 0.15 * weights + NOISE


def test_converting_needs_what_loading_does(path: Path, tmp_path: Path) -> None:
    base = measured("", "", tmp_path / "embedded")
    kept = beyond(measured(path, "int8", tmp_path / "packed"), base)
    assert kept.peak < 1.15 * weights_of(path, "int8") + NOISE + PIECES


def test_nothing_holds_on_to_the_file(path: Path) -> None:
    """Who has loaded a model may write its file anew."""
    model = maskattn.load(path)
    assert model.parameters > 0
    assert str(path) not in Path("/proc/self/maps").read_text()
