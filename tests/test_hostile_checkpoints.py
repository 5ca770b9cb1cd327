"""Files that are truncated, mislabelled or lie: an error that names file and tensor, never a crash or silent zeros."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import maskattn
import tiny_families
from tiny_families import config, write

REFUSALS = (ValueError, FileNotFoundError, NotImplementedError)
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
KEY = Q_PROJ.replace(".", "__")  # as a keyword
INDEX = "model.safetensors.index.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "model", config("llama"))


def weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")

    return apply


def put(name: str, index: Any, value: float) -> Callable[[Path], None]:
    return weights(lambda tensors: tensors[name].__setitem__(index, value))


def say(**values: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads((path / "config.json").read_text()) | values
        (path / "config.json").write_text(json.dumps(content))

    return apply


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite the header of the file and leave its data."""

    def apply(path: Path) -> None:
        content = (path / "model.safetensors").read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        entries = json.loads(content[8:end])
        change(entries)
        text = json.dumps(entries).encode()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[end:])

    return apply


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / "model.safetensors").write_bytes(content) and None


def shard(**changes: Any) -> Callable[[Path], None]:
    """The file as one shard, with an index; ``changes``: of the weight map, None removes."""

    def apply(path: Path) -> None:
        names = list(load_file(path / "model.safetensors"))
        (path / "model.safetensors").rename(path / "part.safetensors")
        places = dict.fromkeys(names, "part.safetensors") | {key.replace("__", "."): v for key, v in changes.items()}
        (path / INDEX).write_text(json.dumps({"weight_map": {k: v for k, v in places.items() if v is not None}}))

    return apply


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda path: [damage(path) for damage in damages] and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (put(Q_PROJ, (3, 5), np.nan), f"{Q_PROJ} must hold finite numbers, got NaN or infinity in model.safetensors"),
        (put("model.norm.weight", 0, -np.inf), "model.norm.weight must hold finite numbers, got NaN or infinity"),
        (say(num_hidden_layers=1), "must hold the tensors of .* got model.layers.1.* besides .9 such"),
        (weights(lambda t: t.update(extra=np.ones(3))), "model that config.json describes, got extra besides .1 such"),
        (say(num_hidden_layers=3), "must have tensor model.layers.2.self_attn.q_proj.weight of shape"),
        (say(num_hidden_layers=10**9), "must have tensor model.layers.2"),
        (say(num_hidden_layers=10**12), "num_hidden_layers as a positive integer, got 1000000000000; take"),
        (say(num_key_value_heads=4), r"k_proj.weight must have shape \(32, 24\), .* got \(16, 24\) in"),
        (say(num_key_value_heads=3), "decoder_heads must be a multiple of the key-value heads 3, got 4"),
        (say(num_attention_heads=0), "num_attention_heads as a positive integer, got 0"),
        (say(hidden_size=True), "hidden_size as a positive integer, got True"),
        (say(head_dim=-8), "its sizes as a positive integer, got -8"),
        (say(head_dim=7), "must fit type dynamic, got .*they turn 7 of 7 coordinates"),
        (say(rms_norm_eps="small"), "must say what norm_eps is, got 'small'"),
        (say(rms_norm_eps=float("nan")), "norm_eps must be between 0 and 1, got nan"),
        (say(rms_norm_eps=10**400), "must say what norm_eps is, got 1000"),
        (say(hidden_act=["silu"]), r"must say what activation is, got \['silu'\]"),
        (say(attention_bias="yes"), "must have tensor model.layers.0.self_attn.q_proj.bias"),
        (say(rope_scaling={"type": "magic"}), "rope_type must be one of default, .*yarn, got 'magic'"),
        (say(rope_scaling={"type": "linear"}), "must fit type linear, got KeyError.'factor'."),
        (say(rope_scaling={"type": "linear", "factor": 0}), "must fit type linear, got .*not finite"),
        (say(rope_scaling={"type": "yarn", "factor": "4"}), "must fit type yarn, got TypeError"),
        (say(rope_scaling=[4]), r"rope_parameters must be an object, got \[4\]; correct"),
        (say(rope_theta=-1.0), "must fit type dynamic, got .* powers of -1.0"),
        (say(model_type=["llama"]), "model_type must be a known family"),
        (raw(struct.pack("<Q", 2**62) + b"{}"), r"model.safetensors must have a header of \d+ bytes, got 10"),
        (raw(struct.pack("<Q", 2**63 + 5) + b"{}"), r"must have a header of \d+ bytes, got 10 bytes in all"),
        (raw(struct.pack("<Q", 9) + b"[" * 9), "model.safetensors must have a header in JSON, got"),
        (header(lambda h: h[Q_PROJ].update(shape=[24, 31])), f"must have all bytes of {Q_PROJ}, got shape"),
        (header(lambda h: h[Q_PROJ].update(shape=[2**40, 2**40])), f"must have all bytes of {Q_PROJ}, got sh"),
        (header(lambda h: h[Q_PROJ].update(dtype="F64")), f"must have all bytes of {Q_PROJ}, got shape"),
        (header(lambda h: h[Q_PROJ].update(dtype="I32")), f"{Q_PROJ} must be stored as F32, F16 or BF16, got I32 in"),
        (header(lambda h: h[Q_PROJ].update(shape=[24, 32])), rf"{Q_PROJ} must .* shape \(32, 24\), .* got \(24, 32\)"),
        (header(lambda h: h[Q_PROJ].update(data_offsets=[0, 2**50])), f"must have all bytes of {Q_PROJ}, got"),
        (header(lambda h: h.update({Q_PROJ: h["model.norm.weight"]})), r"must have tensors of \d+ bytes, .*, got"),
        (header(lambda h: h.pop(Q_PROJ)), r"must have tensors of \d+ bytes, as it has, got \d+; download it again"),
        (shard(**{KEY: "gone.safetensors"}), f"gone.safetensors must be in .* has {Q_PROJ}; down"),
        (shard(**{KEY: "../part.safetensors"}), f"files beside it, got '../part.*' for {Q_PROJ}"),
        (shard(**{KEY: "/etc/passwd"}), "must name .safetensors files beside it, got '/etc/passwd'"),
        (shard(more="part.safetensors"), "must have tensor more, as model.safetensors.index.json says"),
        (shard(**{KEY: None}), f"must have tensor {Q_PROJ} of shape .* got none of that name"),
        (shard(**{KEY: 3}), "index.json must have a weight_map from tensors to files, got none"),
        (both(shard(), lambda p: (p / INDEX).write_text("[" * 100_000)), "index.json must be valid JSON, got"),
        (both(shard(), lambda p: (p / "part.safetensors").write_bytes(b"")), "part.safetensors must have a header"),
        (lambda p: (p / "config.json").write_text('{"a":' * 50_000) and None, "config.json must be valid JSON, got"),
    ],
)  # fmt: skip
def test_refused(path: Path, damage: Callable[[Path], None], message: str) -> None:
    maskattn.load(path)
    damage(path)
    with pytest.raises(REFUSALS, match=message):
        maskattn.load(path)


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("m2m_100", {"max_position_embeddings": 2**29}, "must say a number of positions up to 2097152, got 536870913"),
        ("marian", {"max_position_embeddings": 2**29}, "must say a number of positions up to 2097152"),
        ("m2m_100", {"pad_token_id": -7}, "positions must begin at a row from 0 up, got -6"),
        ("m2m_100", {"pad_token_id": None}, "must say what position_offset is, got values that do not fit"),
        ("t5", {"relative_attention_max_distance": 2**29}, "relative_attention_max_distance as a positive integer"),
        ("t5", {"feed_forward_proj": 3}, "must say what gated is, got values that do not fit"),
        ("t5", {"feed_forward_proj": "gated-"}, "activation of the encoder in config.json must be one of"),
        ("bert", {"id2label": {"0": "a"}}, r"classifier.weight must have shape \(1, 24\), .* got \(3, 24\)"),
        ("bert", {"architectures": "Bert"}, "architectures of config.json must be a list of str, got 'Bert'"),
        ("bert", {"architectures": ["BertForQuestionAnswering"]}, "got classifier.bias besides"),
        ("gemma2", {"final_logit_softcapping": float("inf")}, "logits_softcap must be a number from 0 up, got inf"),
        ("gemma2", {"layer_types": ["sliding_attention"]}, "must say what mask is, got values that do not fit"),
        ("mistral", {"sliding_window": "wide"}, "must say what mask is, got values that do not fit"),
        ("bert", {"is_decoder": True}, "is_decoder of config.json must be False, got True, which is not"),
        ("llama", {"quantization_config": {"bits": 4}}, "quant_method of quantization_config in .* got None"),
        ("gpt2", {"n_inner": 2**31}, "its sizes as a positive integer, got 2147483648"),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1], "long_factor": [1]}}, "have 4 numbers, got 1"),
    ],
)  # fmt: skip
def test_a_config_that_lies(family: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = tiny_families.tensors(config(family))
    with pytest.raises(REFUSALS, match=message):
        maskattn.load(write(tmp_path, config(family, **values), tensors))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id must be token ids, got '</s>'; correct generation_config.json"),
        ({"eos_token_id": [1, None]}, "eos_token_id must be token ids"),
        ({"eos_token_id": 99}, "eos_token_id must hold token ids below 61, got 99"),
        ({"bad_words_ids": 3}, "bad_words_ids must be lists of token ids, got 3"),
        ({"bad_words_ids": [[]]}, "bad_words_ids must be lists of token ids"),
        ({"min_length": "long"}, "min_length must be an integer, got 'long'"),
    ],
)
def test_a_generation_config_that_lies(values: dict[str, Any], message: str, path: Path) -> None:
    (path / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        maskattn.load(path).generate_ids([[3]])


NASTY = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1],
    {},
    {"type": "yarn"},
]


@pytest.mark.parametrize("family", sorted(tiny_families.CONFIGS))
def test_whatever_one_key_says(family: str, tmp_path: Path) -> None:
    """A model that loads, or a refusal: no other error, and nothing that eats the memory."""
    from maskattn.families import FAMILIES

    sound = config(family)
    tensors = tiny_families.tensors(sound)
    write(tmp_path, sound, tensors)
    refused = 0
    for key in sorted({**FAMILIES[family].defaults, **sound, "rope_theta": 1, "rope_scaling": 1, "layer_types": 1}):
        for value in NASTY:
            (tmp_path / "config.json").write_text(json.dumps({**sound, key: value}))
            try:
                maskattn.load(tmp_path)
            except REFUSALS:
                refused += 1
    assert refused > 50


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_byte_of_the_header(place: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whichever byte of length and header is another: a refusal, or the same model."""
    path = tmp_path_factory.getbasetemp() / "bytes"
    if not path.exists():
        write(path, config("llama"))
        shutil.copy(path / "model.safetensors", path / "sound")
    content = bytearray((path / "sound").read_bytes())
    place %= 8 + struct.unpack("<Q", content[:8])[0]
    content[place] = value
    (path / "model.safetensors").write_bytes(content)
    try:
        model = maskattn.load(path)
    except REFUSALS:
        pass
    else:
        (path / "model.safetensors").write_bytes((path / "sound").read_bytes())
        sound = maskattn.load(path)
        assert model.parameters == sound.parameters
        np.testing.assert_array_equal(model.score_ids([[3, 4]], [[5, 6, 7]]), sound.score_ids([[3, 4]], [[5, 6, 7]]))


# The Hub


def cached(home: Path, name: str) -> Path:
    """What huggingface_hub keeps of a model: refs and a snapshot."""
    folder = home / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return write(folder / "snapshots" / ("0" * 40), config("llama"))


def test_a_model_id_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    folder = cached(tmp_path, "someone/tiny-llama")
    want = maskattn.load(folder).generate_ids([[3, 4]])
    assert maskattn.load("someone/tiny-llama").generate_ids([[3, 4]]) == want
    with pytest.raises(FileNotFoundError, match="got 'someone/other', which is neither here nor to be had"):
        maskattn.load("someone/other")
    os.makedirs("someone/other")
    with pytest.raises(FileNotFoundError, match=r"config\.json must be in"):  # a folder is a folder
        maskattn.load("someone/other")


def test_a_model_id_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"got neither; pip install .maskattn\[hub\]"):
        maskattn.load("someone/tiny-llama")
