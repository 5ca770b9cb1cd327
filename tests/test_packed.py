"""Packed checkpoints: mapped, they compute what those compute that they were made of; damaged, they are refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import maskattn
from maskattn import cli
from maskattn.decoder.packed import FILE
from maskattn.families import FAMILIES
from maskattn.linear import DTYPES
from tiny_families import VOCAB, config, write

REFUSALS = (ValueError, FileNotFoundError)
LENGTHS = (5, 1, 9)


def computed(model: maskattn.Model) -> list[np.ndarray]:
    """What a model makes of a few random sources, by all that it can."""
    rng = np.random.default_rng(0)
    sources: Any = [rng.integers(2, VOCAB, n).tolist() for n in LENGTHS]
    if model.family.name == "whisper":
        sources = rng.standard_normal((len(LENGTHS), 7, 33), dtype=np.float32)
    made: list[np.ndarray] = []
    if model.family.decoder is not None:
        written = model.generate_ids(sources, max_new_tokens=8)
        made += map(np.array, written)
        made += model.score_ids(sources, [[3, *ids] for ids in written])
    if model.family.encoder is not None:
        made += model.encode(sources)
    if model.labels:
        made += model.classify(sources)
    return made


def assert_same(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_same_bits(family: str, dtype: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", config(family))
    maskattn.convert(source, tmp_path / "packed", dtype=dtype)
    model, packed = maskattn.load(source, dtype=dtype), maskattn.load(tmp_path / "packed")
    assert packed.parameters == model.parameters
    assert_same(computed(packed), computed(model))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", config("llama"))


@pytest.fixture
def path(source: Path, tmp_path: Path) -> Path:
    maskattn.convert(source, tmp_path / "packed", dtype="int8")
    return tmp_path / "packed"


def test_weights_are_mapped_and_read_only(path: Path) -> None:
    head = maskattn.load(path)._forward.head
    assert head is not None
    weight: Any = head.map.weight
    with pytest.raises(ValueError, match="must be read only"):
        weight.fill(0, np.zeros((1, weight.shape[1]), np.float32))
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(path / FILE) in mapped.read_text()


def test_the_first_token_imports_little(path: Path) -> None:
    """What is not needed for ids would take longer than the load and the token."""
    script = (
        f"import sys, maskattn; maskattn.load({str(path)!r}).generate_ids([[3]], max_new_tokens=1); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "maskattn.decoder.packed" in loaded
    assert not {"safetensors", "numpy.ma", "tokenizers", "sentencepiece", "jinja2", "gguf"} & set(loaded)


def test_every_other_file_comes_along(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    (source / "generation_config.json").write_text('{"max_new_tokens": 3}')
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("")
    maskattn.convert(source, tmp_path / "packed")
    names = sorted(file.name for file in (tmp_path / "packed").iterdir())
    assert names == ["config.json", "generation_config.json", FILE, "tokenizer.json"]
    assert len(maskattn.load(tmp_path / "packed").generate_ids([[4, 5]])[0]) <= 3


def test_it_is_a_safetensors_file(path: Path) -> None:
    tensors = load_file(path / FILE)
    assert tensors["model.norm.weight"].dtype == np.float32
    assert tensors["model.layers.0.mlp.down_proj.weight.packed"].dtype == np.uint8
    assert (8 + struct.unpack("<Q", (path / FILE).read_bytes()[:8])[0]) % 64 == 0


def test_the_dtype_is_that_of_the_file(source: Path, path: Path, tmp_path: Path) -> None:
    assert_same(computed(maskattn.load(path, dtype="int8")), computed(maskattn.load(path)))
    with pytest.raises(ValueError, match=r"dtype must be left out, or .* packed, int8, got 'float32'; convert the"):
        maskattn.load(path, dtype="float32")
    maskattn.convert(source, tmp_path / "floats")
    assert_same(computed(maskattn.load(tmp_path / "floats", dtype="float32")), computed(maskattn.load(source)))


def test_packed_again(path: Path, tmp_path: Path) -> None:
    maskattn.convert(path, tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() != b""
    assert_same(computed(maskattn.load(tmp_path / "again")), computed(maskattn.load(path)))


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "packed")
    assert cli.main(["convert", str(source), target, "--dtype", "bfloat16"]) == 0
    assert cli.main(["models", target, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dtypes"] == ["F32", "bfloat16"]
    assert facts["parameters"] == maskattn.load(source).parameters
    assert cli.main(["convert", str(source), target]) == 1
    assert "target must be a new folder" in capsys.readouterr().err


def test_nothing_is_left_of_a_failure(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of float32, .*, got 'int3'"):
        maskattn.convert(source, tmp_path / "packed", dtype="int3")
    with pytest.raises(TypeError, match="target must be a str or a path, got int"):
        maskattn.convert(source, 3)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        maskattn.convert(source, tmp_path / "packed")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


# Files that lie


def header(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite header and metadata, and leave the data where they are."""

    def apply(path: Path) -> None:
        content = (path / FILE).read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        entries = json.loads(content[8:end])
        facts = json.loads(entries["__metadata__"]["maskattn"])
        change(entries, facts)
        entries.get("__metadata__", {})["maskattn"] = json.dumps(facts)
        text = json.dumps(entries).encode()
        text += b" " * (-(8 + len(text)) % 64)
        (path / FILE).write_bytes(struct.pack("<Q", len(text)) + text + content[end:])

    return apply


def cut(keep: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / FILE, keep if keep >= 0 else (path / FILE).stat().st_size + keep)


def say(**values: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads((path / "config.json").read_text()) | values
        (path / "config.json").write_text(json.dumps(content))

    return apply


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(0), "must have a header, got an empty file; convert the model again"),
        (cut(5), "must have a header, got"),
        (cut(100), r"must have a header of \d+ bytes, got 100 bytes in all"),
        (cut(-1), r"must have all bytes of model.norm.weight, got shape \(24,\) from"),
        (lambda p: (p / FILE).write_bytes(struct.pack("<Q", 2**63 + 5) + b"{}") and None, "bytes, got 10 bytes in all"),
        (lambda p: (p / FILE).write_bytes(struct.pack("<Q", 9) + b"[" * 9) and None, "must have a header in JSON, got"),
        (lambda p: (p / FILE).write_bytes(struct.pack("<Q", 2) + b"[]") and None, r"that is a JSON object, got \[\]"),
        (header(lambda h, f: f.update(version=2)), "must have version 1 of packed weights, got 2; convert"),
        (header(lambda h, f: f.update(family="bart")), "a llama model, as config.json says, got those of 'bart'"),
        (header(lambda h, f: f.update(dtype=4)), "must have a list of weights and a dtype in its metadata"),
        (header(lambda h, f: f.pop("weights")), "must have metadata of maskattn, got"),
        (header(lambda h, f: h.pop("__metadata__")), "must have metadata of maskattn, got {}"),
        (header(lambda h, f: f["weights"][3].update(dtype="int3")), "as its metadata says, got dtype must be one of"),
        (header(lambda h, f: f["weights"][3].update(dtype="int4")), r"as its metadata says, got packed bytes must be"),
        (header(lambda h, f: f["weights"][3].update(group=-32)), "must have integers as extents and group"),
        (header(lambda h, f: f["weights"][3]["tensors"][0].append(1)), "tensors, dtype and group of each weight"),
        (header(lambda h, f: f["weights"][3].update(tensors=[["a", [2**40, 2**40]]])), "must have tensor model"),
        (header(lambda h, f: f["weights"][3].update(tensors=[["a", []]])), "tensors of the same inputs in a weight"),
        (header(lambda h, f: f["weights"].pop(3)), "must have tensor model.layers.0"),
        (header(lambda h, f: f["weights"].append(f["weights"][0] | {"tensors": [["a", [8, 8]]]})), "got a besides"),
        (header(lambda h, f: h.update(a=h.pop(f"{DOWN}.packed"))), f"must have {DOWN}.packed in bytes, got none"),
        (header(lambda h, f: h.update(a=h.pop(NORM))), f"must have tensor {NORM} or .* of shape .24,., got none"),
        (header(lambda h, f: h[NORM].update(dtype="F12")), f"must have tensor {NORM} or .* of shape .24,., got none"),
        (header(lambda h, f: h[NORM].update(dtype="I32")), f"must have tensor {NORM} or .* of shape .24,., got none"),
        (header(lambda h, f: h.pop(NORM)), r"must have tensors of \d+ bytes, as it has, got \d+; convert"),
        (header(lambda h, f: h[NORM].update(dtype=["F32"])), f"dtype, shape and data_offsets of {NORM} in its header"),
        (header(lambda h, f: h[NORM].update(shape=[23])), f"must have all bytes of {NORM}, got shape .23,. from"),
        (header(lambda h, f: h[NORM].update(shape=[24.0])), f"integers from 0 up as shape and data_offsets of {NORM}"),
        (header(lambda h, f: h[NORM].update(data_offsets=[-96, 0])), f"integers from 0 up as shape and data_.* {NORM}"),
        (header(lambda h, f: h[NORM].update(data_offsets=[2**60, 2**60 + 96])), f"all bytes of {NORM}, got shape"),
        (header(lambda h, f: h[NORM].update(data_offsets=[1, 97])), f"{NORM} at a multiple of its item's size, got"),
        (say(hidden_size=32), r"weight must have shape \(61, 32\), as config.json says, got \(61, 24\) in"),
        (say(num_hidden_layers=1), "must hold the tensors of the model that config.json describes"),
        (say(model_type="bart"), "weights of a bart model"),
        (lambda p: (p / "config.json").unlink(), "config.json must be in"),
    ],
)  # fmt: skip
def test_refused(path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(path)
    with pytest.raises(REFUSALS, match=message):
        maskattn.load(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 9000), value=st.integers(0, 255))
def test_a_byte_of_the_header(place: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whichever byte of length and header is another: a refusal, or a model of the same shapes that computes."""
    path = tmp_path_factory.getbasetemp() / "packed-bytes"
    if not path.exists():
        maskattn.convert(write(path.with_name("packed-source"), config("llama")), path, dtype="int8")
        os.rename(path / FILE, path / "sound")
    content = bytearray((path / "sound").read_bytes())
    place %= 8 + struct.unpack("<Q", content[:8])[0]
    content[place] = value
    (path / FILE).unlink(missing_ok=True)  # and written anew: what is mapped must not change
    (path / FILE).write_bytes(content)
    try:
        model = maskattn.load(path)
    except REFUSALS:
        return
    scores = model.score_ids([[3, 4]], [[5, 6, 7]])[0]
    assert scores.shape == (3,)
