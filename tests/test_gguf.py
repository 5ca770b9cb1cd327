"""GGUF files compute what their numbers compute as safetensors."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

import gguf_models  # noqa: E402 - after the skip
import maskattn  # noqa: E402
import tiny_families  # noqa: E402
from tiny_families import config  # noqa: E402

LLAMA = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"rope_theta": 5000.0, "max_position_embeddings": 64}
#: Blocks of 256 numbers.
WIDE = {**LLAMA, "hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
GPT2 = {"n_embd": 64, "n_head": 4, "n_inner": 96}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "rope_scaling": None},
    "llama, biased": {**LLAMA, "rope_scaling": None, "attention_bias": True},
    "llama, tied": {**LLAMA, "rope_scaling": None, "tie_word_embeddings": True},
    "qwen2": {**LLAMA, "use_sliding_window": False},
    "gpt2": GPT2,
}


def models(
    kind: str, shape: str, folder: Path, sizes: dict[str, Any] | None = None
) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """The same model as GGUF and as safetensors, and its tensors."""
    settings = config(shape.split(",")[0], **SETTINGS[shape] | (sizes or {}))
    tensors = tiny_families.tensors(settings)
    if settings.get("tie_word_embeddings") is not True and "lm_head.weight" not in tensors and shape != "gpt2":
        rng = np.random.default_rng(3)
        tensors["lm_head.weight"] = rng.standard_normal(tensors["model.embed_tokens.weight"].shape, np.float32) / 8
    stored = gguf_models.write(folder / "model.gguf", settings, tensors, kind)
    return folder / "model.gguf", tiny_families.write(folder / "floats", settings, stored), stored


def scores(path: Path, dtype: str | None = None) -> np.ndarray:
    return maskattn.load(path, dtype=dtype).score_ids([[3, 4, 5, 6]], [[7, 8, 9, 10, 11]])[0]


@pytest.mark.parametrize("shape", SETTINGS)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_the_numbers_of_the_file(kind: str, shape: str, tmp_path: Path) -> None:
    path, floats, _ = models(kind, shape, tmp_path)
    np.testing.assert_array_equal(scores(path, "float32"), scores(floats, "float32"))
    # Q4_0 stays integers, which meet rounded activations.
    got, want = scores(path), scores(floats, "float32")
    assert np.linalg.norm(got - want) <= (0.02 if kind == "Q4_0" else 5e-4) * np.linalg.norm(want)
    if kind == "Q8_0":
        np.testing.assert_array_equal(scores(path, "int8"), scores(floats, "int8"))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256(kind: str, tmp_path: Path) -> None:
    path, floats, _ = models(kind, "llama", tmp_path, WIDE)
    np.testing.assert_array_equal(scores(path), scores(floats))


def test_q4_0_is_int4_without_a_loss(tmp_path: Path) -> None:
    path, _, stored = models("Q4_0", "llama", tmp_path)
    attention: Any = maskattn.load(path)._forward.decoder.layers[1].attention  # type: ignore[union-attr]
    for part in "qkv":
        weight = getattr(attention, part).weight
        exact = stored[f"model.layers.1.self_attn.{part}_proj.weight"]
        assert weight.dtype == "int4"
        np.testing.assert_array_equal(weight.rows(np.arange(len(exact))), exact)


def test_frequencies_worked_out(tmp_path: Path) -> None:
    """Llama 3.1's scaling stands in the file as a divisor of each frequency."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings = config("llama", **LLAMA, rope_scaling=scaling | {"original_max_position_embeddings": 32})
    tensors = tiny_families.tensors(settings)
    factors = []
    for i in range(0, 16, 2):  # generate_extra_tensors of llama.cpp's converter
        frequency = settings["rope_theta"] ** -(i / 16)
        smooth = np.clip((32 * frequency / (2 * np.pi) - 1.0) / (4.0 - 1.0), 0, 1)
        factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    extra = {"rope_freqs.weight": np.array(factors, np.float32)}
    stored = gguf_models.write(tmp_path / "model.gguf", settings, tensors, extra=extra)
    want = scores(tiny_families.write(tmp_path / "floats", settings, stored))
    np.testing.assert_allclose(scores(tmp_path / "model.gguf"), want, atol=1e-4)
    plain = scores(tiny_families.write(tmp_path / "plain", settings | {"rope_scaling": None}, stored))
    assert np.abs(plain - want).max() > 1e-2


def test_positions_divided(tmp_path: Path) -> None:
    settings = config("llama", **LLAMA, rope_scaling={"rope_type": "linear", "factor": 3.0})
    metadata = {"rope__scaling__type": "linear", "rope__scaling__factor": 3.0}
    path = tmp_path / "model.gguf"
    stored = gguf_models.write(path, settings, tiny_families.tensors(settings), **metadata)
    np.testing.assert_array_equal(scores(path), scores(tiny_families.write(tmp_path / "floats", settings, stored)))


def test_ends_and_conversion(tmp_path: Path) -> None:
    path, _, _ = models("Q4_0", "llama", tmp_path)
    model = maskattn.load(path)
    assert model.config["eos_token_id"] == [1]
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("of something else")
    maskattn.convert(path, tmp_path / "packed")
    np.testing.assert_array_equal(scores(tmp_path / "packed"), scores(path))
    names = sorted(file.name for file in (tmp_path / "packed").iterdir())
    assert names == ["config.json", "maskattn.safetensors", "tokenizer.json"]


# What is refused


def test_variants(tmp_path: Path) -> None:
    settings = config("llama", **SETTINGS["llama"])
    tensors = tiny_families.tensors(settings)
    path = tmp_path / "model.gguf"
    gguf_models.write(path, settings, tensors, rope__scaling__type="yarn")
    with pytest.raises(
        NotImplementedError, match=r"rope\.scaling\.type of model\.gguf must be none or linear, got 'yar"
    ):
        maskattn.load(path)
    gguf_models.write(path, settings, tensors, expert_count=8)
    with pytest.raises(NotImplementedError, match=r"expert_count of model\.gguf must be 0, got 8"):
        maskattn.load(path)
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotImplementedError, match=r"general\.architecture of .* llama or qwen2 or gpt2, got 'mamba'"):
        maskattn.load(path)


def test_files_that_are_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"path must be a checkpoint, got 'some/model.gguf', which is not there"
    ):
        maskattn.load("some/model.gguf")
    path, _, _ = models("Q4_0", "llama", tmp_path)
    content = path.read_bytes()
    want = scores(path)
    for damaged in (b"", b"GGUF", b"x" * 100, content[:200], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.gguf must be a GGUF file, got .*; download it again"):
            maskattn.load(path)
    rng = np.random.default_rng(0)
    loaded = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.integers(0, 3000)] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError, NotImplementedError):
            assert scores(path).shape == want.shape
            loaded += 1
    assert 0 < loaded < 150, "some bytes must matter, and some not"
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r'pip install "maskattn\[gguf\]"'):
        maskattn.load(path)
