"""A checkpoint that is missing, broken or of another model: each an error that names what, wanted, got, remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import maskattn
import tiny_marian
from maskattn.families import FAMILIES, find

Q_PROJ = "model.decoder.layers.1.encoder_attn.q_proj.weight"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_marian.write(tmp_path / "tiny")


def change(name: str, **values: Any) -> Callable[[Path], None]:
    """Set keys of a JSON file; None removes the key."""

    def apply(path: Path) -> None:
        content = json.loads((path / name).read_text()) | values
        (path / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(content) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def tensor(name: str, make: Callable[[np.ndarray], np.ndarray] | None) -> Callable[[Path], None]:
    """Replace a tensor by ``make`` of it, or leave it out."""

    def apply(path: Path) -> None:
        weights = tiny_marian.tensors()
        old = weights.pop(name)
        save_file(weights | ({name: make(old)} if make else {}), path / "model.safetensors")

    return apply


def retype(name: str, kind: str) -> Callable[[Path], None]:
    """Say that a tensor's numbers are others."""

    def apply(path: Path) -> None:
        data = (path / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header[name]["dtype"] = kind
        text = json.dumps(header).encode()
        (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return apply


def truncate(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def pytorch_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove("config.json"), FileNotFoundError, "config.json must be in .*, got no such file; pass the folder"),
        (remove("model.safetensors"), FileNotFoundError, "model.safetensors must be in .*, got no weights"),
        (pytorch_only, FileNotFoundError, "got pytorch_model.bin; load the model with transformers"),
        (write("config.json", b"{'model_type'"), ValueError, "config.json must be valid JSON, got .*; download it"),
        (write("config.json", b"\xff\xfe{"), ValueError, "config.json must be valid JSON"),
        (write("config.json", b"[1]"), ValueError, "config.json must hold a JSON object, got a list"),
        (write("generation_config.json", b"{"), ValueError, "generation_config.json must be valid JSON"),
        (write("model.safetensors", b""), ValueError, "must have a header, got an empty file; download it"),
        (write("model.safetensors", b"x" * 100), ValueError, r"must have a header of \d+ bytes, got 100 bytes"),
        (truncate, ValueError, "model.safetensors must have all bytes of .*; download it again"),
        (tensor(Q_PROJ, None), ValueError, f"must have tensor {Q_PROJ} of shape .16, 16., got none .*; save"),
        (tensor(Q_PROJ, lambda t: t[:8].copy()), ValueError, f"{Q_PROJ} must have shape .16, 16., .* got .8, 16."),
        (retype(Q_PROJ, "F4"), ValueError, "F16 or BF16, got F4 in model.safetensors; save the model in one of"),
        (tensor(Q_PROJ, lambda t: t.astype(np.int8)), ValueError, "F16 or BF16, got I8 in model.safetensors; s"),
        (tensor("lm_head.weight", None), ValueError, "must have tensor lm_head.weight of shape .41, 16., got none"),
        (tensor("model.shared.weight", None), ValueError, "encoder.embed_tokens.weight or model.shared.weight"),
        (change("config.json", model_type="gpt17"), ValueError, r"a known family \(.*marian.*\), got 'gpt17'; convert"),
        (change("config.json", model_type=None), ValueError, r"model_type must be a known family \(.*\), got None"),
        (change("config.json", d_model=None), ValueError, "must have d_model as a positive integer, got None; take"),
        (change("config.json", encoder_layers="2"), ValueError, "encoder_layers as a positive integer, got '2'"),
        (change("config.json", decoder_layers=0), ValueError, "decoder_layers as a positive integer, got 0"),
        (change("config.json", decoder_attention_heads=3), ValueError, "decoder_heads must divide .* width 16, got 3"),
        (change("config.json", d_model=32), ValueError, "must have shape .41, 32., as config.json says, got .41, 16."),
        (change("config.json", encoder_layers=3), ValueError, "must have tensor model.encoder.layers.2.self_attn"),
        (change("config.json", activation_function="mish"), ValueError, "must be one of .*gelu.*got 'mish'"),
        (change("config.json", decoder_start_token_id=None), ValueError, "decoder_start_token_id must be .*got None"),
        (change("config.json", decoder_start_token_id=41), ValueError, "decoder_start_token_id .* below 41, got 41"),
        (write("vocab.json", b"{"), ValueError, "vocab.json must be valid JSON"),
        (change("vocab.json", **{"<unk>": None}), ValueError, "vocab.json must have the token '<unk>', got none"),
        (change("vocab.json", a=99), ValueError, "vocab.json must hold ids below the model's vocab_size 41, got 99"),
        (change("vocab.json", a=4, b=4), ValueError, "vocab.json must give each token an integer of its own"),
        (change("vocab.json", march=40), ValueError, "vocab.json must (hold single characters|give each token)"),
    ],
)  # fmt: skip
def test_broken_checkpoint(path: Path, damage: Callable[[Path], None], error: type[Exception], message: str) -> None:
    maskattn.load(path)
    damage(path)
    with pytest.raises(error, match=message):
        maskattn.load(path)


@pytest.mark.parametrize("name", ["nowhere", "tiny/config.json"])
def test_no_directory(path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"path must be a directory .*got '.*{name}'.*; download"):
        maskattn.load(path.parent / name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("vocab.json"), "vocab.json must be in .*, got no such file; add it, or use the .*_ids methods"),
        (remove("tokenizer_config.json"), "tokenizer.json or source.spm and target.spm must be in"),
        (
            change("tokenizer_config.json", tokenizer_class="FrenchTokenizer"),
            "tokenizer.json must be in .*, got no such file; add it, or use the .*_ids methods",
        ),
    ],
)
def test_without_a_known_tokenizer_ids_still_work(path: Path, damage: Callable[[Path], None], message: str) -> None:
    want = maskattn.load(path).generate_ids([[3, 4]], max_new_tokens=5)
    damage(path)
    model = maskattn.load(str(path))
    assert model.tokenizer is None
    assert model.generate_ids([[3, 4]], max_new_tokens=5) == want
    for call in (lambda: model.generate(["3"]), lambda: model.score(["3"], ["4"])):
        with pytest.raises(ValueError, match=message):
            call()


def test_tied_head_falls_back_to_the_embedding(path: Path) -> None:
    weights = tiny_marian.tensors()
    weights["lm_head.weight"] = weights["model.shared.weight"]
    untied = maskattn.load(tiny_marian.write(path, weights=weights))
    del weights["lm_head.weight"]
    tied = maskattn.load(tiny_marian.write(path, tiny_marian.CONFIG | {"tie_word_embeddings": True}, weights))
    assert tied.generate_ids([[3, 4, 5]]) == untied.generate_ids([[3, 4, 5]])
    assert untied.parameters - tied.parameters == weights["model.shared.weight"].size


def test_half_precision_weights_are_widened(path: Path) -> None:
    """float16 by NumPy's cast, bfloat16 by its definition: the upper 16 bits of a float32."""
    wide = tiny_marian.tensors()
    half = {name: value.astype(np.float16) for name, value in wide.items()}
    got = maskattn.load(tiny_marian.write(path, weights=half)).score_ids([[3, 4]], [[5, 6]])[0]
    widened = {name: value.astype(np.float32) for name, value in half.items()}
    want = maskattn.load(tiny_marian.write(path, weights=widened)).score_ids([[3, 4]], [[5, 6]])[0]
    np.testing.assert_array_equal(got, want)

    bits = {name: value.view(np.uint32) >> 16 for name, value in wide.items()}
    save_bfloat16(bits, path / "model.safetensors")
    got = maskattn.load(path).score_ids([[3, 4]], [[5, 6]])[0]
    widened = {name: (value << 16).view(np.float32) for name, value in bits.items()}
    want = maskattn.load(tiny_marian.write(path, weights=widened)).score_ids([[3, 4]], [[5, 6]])[0]
    np.testing.assert_array_equal(got, want)


def save_bfloat16(bits: dict[str, np.ndarray], file: Path) -> None:
    """The safetensors format by hand (header length, header, data), since NumPy has no bfloat16."""
    header, data = {}, b""
    for name, value in bits.items():
        piece = value.astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_unknown_family_lists_all_known() -> None:
    with pytest.raises(ValueError, match="got 'gpt17'") as caught:
        find("gpt17")
    assert all(name in str(caught.value) for name in FAMILIES)
