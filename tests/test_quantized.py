"""4-bit checkpoints as GPTQ, AWQ and compressed-tensors write them, against the floats that their formats define."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import maskattn
import tiny_families
from tiny_families import config, write

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"n_embd": 64, "n_head": 4, "n_inner": 96}
Tensors = dict[str, np.ndarray]
#: q and zeros (outputs, inputs or groups) in 0 to 15, scales (outputs, groups), the group of each input -> tensors.
Packer = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Tensors]


def words(numbers: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Eight numbers of a row as one int32, number ``order[i]`` of each eight in bits 4 i to 4 i + 3."""
    made = np.zeros((len(numbers), -(-numbers.shape[1] // 8)), np.int64)
    for row, line in enumerate(numbers):
        for word in range(made.shape[1]):
            for i, place in enumerate(order):
                if 8 * word + place < len(line):
                    made[row, word] |= int(line[8 * word + place]) << 4 * i
    return made.astype(np.uint32).view(np.int32)


def gptq(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> Tensors:
    """AutoGPTQ's QuantLinear.pack: words run down the inputs; zeros are stored less one, whole words at a time."""
    less = words(zeros.T).view(np.uint32) - np.uint32(0x11111111)
    return {**gptq_v2(q, zeros, scales, group_of), "qzeros": less.view(np.int32)}


def gptq_v2(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> Tensors:
    return {
        "qweight": np.ascontiguousarray(words(q).T),
        "qzeros": words(zeros.T),
        "scales": np.ascontiguousarray(scales.T).astype(np.float16),
        "g_idx": group_of.astype(np.int32),
    }


def awq(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> Tensors:
    """AutoAWQ's WQLinear_GEMM: words run along the outputs, even ones first."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(q.T, order),
        "qzeros": words(zeros.T, order),
        "scales": np.ascontiguousarray(scales.T).astype(np.float16),
    }


def pack_quantized(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> Tensors:
    """compressed-tensors' pack_to_int32: weights along the inputs, zeros along the outputs."""
    return {
        "weight_packed": words(q),
        "weight_scale": scales.astype(np.float32),
        "weight_zero_point": np.ascontiguousarray(words(zeros.T).T),
        "weight_shape": np.array(q.shape, np.int64),
        "weight_g_idx": group_of.astype(np.int32),
    }


def quantized(
    settings: dict[str, Any], packer: Packer, group_size: int, *, symmetric: bool = False, shuffled: bool = False
) -> tuple[Tensors, Tensors]:
    """A model's tensors with random 4-bit numbers in the maps of its layers, and the same as floats."""
    rng = np.random.default_rng(4)
    floats = tiny_families.tensors(settings)
    packed = dict(floats)
    for name, tensor in floats.items():
        if tensor.ndim != 2 or not (".layers." in name or ".h." in name):
            continue
        outputs, inputs = tensor.shape[::-1] if settings["model_type"] == "gpt2" else tensor.shape
        size = inputs if group_size == -1 else group_size
        groups = -(-inputs // size)
        group_of = np.arange(inputs) // size
        if shuffled:
            group_of = rng.permutation(group_of)
        q = rng.integers(0, 16, (outputs, inputs))
        zeros = np.full((outputs, groups), 8) if symmetric else rng.integers(0, 16, (outputs, groups))
        scales = rng.uniform(0.01, 0.03, (outputs, groups)).astype(np.float16)
        del packed[name]
        module = name.removesuffix(".weight")
        packed |= {f"{module}.{part}": value for part, value in packer(q, zeros, scales, group_of).items()}
        weight = (q - zeros[:, group_of]) * scales.astype(np.float64)[:, group_of]
        floats[name] = (weight.T if settings["model_type"] == "gpt2" else weight).astype(np.float32).copy()
    return packed, floats


def scores(path: Path, dtype: str | None = None) -> np.ndarray:
    return maskattn.load(path, dtype=dtype).score_ids([[3, 4, 5, 6]], [[7, 8, 9, 10, 11]])[0]


def compressed(**weights: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


GPTQ = {"quant_method": "gptq", "bits": 4}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm"}
KINDS: dict[str, tuple[str, Packer, dict[str, Any], dict[str, Any]]] = {
    "gptq": ("llama", gptq, {**GPTQ, "group_size": 32}, {}),
    "gptq, symmetric": ("llama", gptq, {**GPTQ, "group_size": 32, "checkpoint_format": "gptq"}, {"symmetric": True}),
    "gptq, one group": ("llama", gptq, {**GPTQ, "group_size": -1}, {}),
    "gptq_v2": ("qwen2", gptq_v2, {**GPTQ, "group_size": 32, "checkpoint_format": "gptq_v2"}, {}),
    "gptq of (in, out)": ("gpt2", gptq, {**GPTQ, "group_size": 32}, {"symmetric": True}),
    "gptq, a group cut off": ("llama", gptq, {**GPTQ, "group_size": 64}, {}),
    "awq": ("llama", awq, {**AWQ, "group_size": 32}, {}),
    "awq, large groups": ("qwen2", awq, {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}, {}),
    "pack-quantized": ("llama", pack_quantized, compressed(), {}),
    "pack-quantized, channels": ("qwen2", pack_quantized, compressed(strategy="channel", group_size=None), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_floats_of_the_format(kind: str, tmp_path: Path) -> None:
    """As 4-bit groups the very numbers of the format, so only activations are rounded; asked for floats, their bits."""
    family, packer, method, options = KINDS[kind]
    settings = config(family, **(GPT2 if family == "gpt2" else SIZES))
    group_size = method.get("group_size", method.get("q_group_size"))
    if group_size is None:
        group_size = method["config_groups"]["group_0"]["weights"]["group_size"] or -1
    packed, floats = quantized(settings, packer, group_size, **options)
    path = write(tmp_path / "packed", settings | {"quantization_config": method}, packed)
    want = scores(write(tmp_path / "floats", settings, floats))
    np.testing.assert_array_equal(scores(path, "float32"), want)
    assert np.linalg.norm(scores(path) - want) <= 0.02 * np.linalg.norm(want)
    model = maskattn.load(path)
    layers = model._forward.decoder.layers  # type: ignore[union-attr]
    weight: Any = layers[0].attention.out.weight
    assert weight.dtype == ("int4" if options.get("symmetric") else "uint4")
    name = "transformer.h.0.attn.c_proj.weight" if family == "gpt2" else "model.layers.0.self_attn.o_proj.weight"
    exact = floats[name].T if family == "gpt2" else floats[name]
    np.testing.assert_array_equal(weight.rows(np.arange(len(exact))), exact)
    assert model._forward.head.map.weight.dtype == "float32"  # type: ignore[union-attr]
    assert maskattn.load(path, dtype="int8")._forward.head.map.weight.dtype == "int8"  # type: ignore[union-attr]
    maskattn.convert(path, tmp_path / "target")
    np.testing.assert_array_equal(scores(tmp_path / "target"), scores(path))


@pytest.mark.parametrize("packer", [gptq, pack_quantized])
def test_groups_in_another_order(packer: Packer, tmp_path: Path) -> None:
    """With activation order the groups' inputs are anywhere: packed weights have no such groups, so they are floats."""
    settings = config("llama", **SIZES)
    packed, floats = quantized(settings, packer, 32, shuffled=True)
    method = {**GPTQ, "group_size": 32, "desc_act": True} if packer is gptq else compressed(actorder="group")
    path = write(tmp_path / "packed", settings | {"quantization_config": method}, packed)
    want = write(tmp_path / "floats", settings, floats)
    for dtype in (None, "bfloat16", "int8"):
        np.testing.assert_array_equal(scores(path, dtype), scores(want, dtype))


def test_an_older_gptq_checkpoint(tmp_path: Path) -> None:
    """Settings in a file of their own, and a bias of zeros for maps that have none."""
    settings = config("llama", **SIZES)
    packed, floats = quantized(settings, gptq, 32)
    packed |= {name.replace("qweight", "bias"): np.zeros(8, np.float16) for name in packed if name.endswith("qweight")}
    path = write(tmp_path / "packed", settings, packed)
    (path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    want = scores(write(tmp_path / "floats", settings, floats))
    np.testing.assert_array_equal(scores(path, "float32"), want)
    packed["model.layers.0.mlp.down_proj.bias"][3] = 1
    write(path, settings, packed)
    with pytest.raises(ValueError, match=r"got model\.layers\.0\.mlp\.down_proj\.bias besides"):
        maskattn.load(path)


def scales_too_small(tensors: Tensors) -> None:
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = (tensors[name] * np.float32(1e-7)).astype(np.float32)


def test_scales_that_float16_cannot_hold(tmp_path: Path) -> None:
    settings = config("llama", **SIZES)
    packed, _ = quantized(settings, pack_quantized, 32)
    scales_too_small(packed)
    path = write(tmp_path / "packed", settings | {"quantization_config": compressed()}, packed)
    assert maskattn.load(path)._forward.decoder.layers[0].attention.out.weight.dtype == "float32"  # type: ignore[union-attr]


DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("method", "change", "error", "message"),
    [
        ({"bits": 8}, {}, NotImplementedError, "bits of quantization_config in config.json must be 4, got 8, which"),
        ({"quant_method": "hqq"}, {}, NotImplementedError, "quant_method of .* 'gptq' or 'awq' or .*, got 'hqq'"),
        ({"checkpoint_format": "marlin"}, {}, NotImplementedError, "checkpoint_format of .* 'gptq_v2', got 'marlin'"),
        ({"quant_method": "awq", "version": "gemv"}, {}, NotImplementedError, "version of .* be 'gemm', got 'gemv'"),
        ({**compressed(num_bits=8)}, {}, NotImplementedError, "num_bits of .* must be 4, got 8"),
        ({**compressed(), "format": "float"}, {}, NotImplementedError, "format of .* must be 'pack-quantized'"),
        ({**compressed(), "config_groups": {}}, {}, NotImplementedError, "config_groups of .* must be 'one group"),
        ({"group_size": 48}, {}, ValueError, r"a group_size that makes 2 groups of 64 inputs, got 48|3 groups of 96"),
        ({"group_size": "big"}, {}, ValueError, "must have a group_size that makes .*, got 'big' in model.safetensors"),
        ({"group_size": True}, {}, ValueError, "must have a group_size that makes"),
        ({}, {"qzeros": None}, ValueError, f"{DOWN} must have {DOWN}.qzeros beside {DOWN}.qweight, got none"),
        ({}, {"qzeros": lambda t: t[:1]}, ValueError, r"zeros of the same groups, got \(64, 3\) and \(64, 1\)"),
        ({}, {"qzeros": lambda t: t.astype(np.float32)}, ValueError, "must have qzeros as I32, got F32"),
        ({}, {"qweight": lambda t: t[:-1]}, ValueError, r"weight must have shape \(64, 96\), .* got \(64, 88\)"),
        ({}, {"qweight": lambda t: t[0]}, ValueError, r"qweight must have 2 axes, got \(64,\)"),
        ({}, {"scales": lambda t: t * np.float16(np.nan)}, ValueError, f"{DOWN}.scales must hold finite numbers"),
        ({}, {"scales": lambda t: t.astype(np.int32)}, ValueError, f"{DOWN}.scales must be stored as F32, F16 or BF16"),
        ({}, {"g_idx": lambda t: t + 1}, ValueError, "a group from 0 to 2 for each of 96 inputs in g_idx"),
        ({}, {"g_idx": lambda t: -t - 1}, ValueError, "a group from 0 to 2 for each of 96 inputs in g_idx"),
        ({}, {"g_idx": lambda t: t[:5]}, ValueError, "a group from 0 to 2 for each of 96 inputs in g_idx"),
    ],
)  # fmt: skip
def test_refused(
    method: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    settings = config("llama", **SIZES)
    path = write(
        tmp_path,
        settings | {"quantization_config": {**GPTQ, "group_size": 32} | method},
        quantized(settings, gptq, 32)[0],
    )
    tensors = load_file(path / "model.safetensors")
    for part, function in change.items():
        old = tensors.pop(f"{DOWN}.{part}")
        if function is not None:
            tensors[f"{DOWN}.{part}"] = np.ascontiguousarray(function(old))
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(error, match=message):
        maskattn.load(path)
