"""Checkpoints as folders: config.json, generation_config.json and safetensors files, one or in shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskattn.decoder.checkpoint import WEIGHTS, Checkpoint, read_configs, read_json
from maskattn.decoder.mapped import MappedFile
from maskattn.decoder.tensors import SafeTensor, Tensor

INDEX, GPTQ = "model.safetensors.index.json", "quantize_config.json"


def open_folder(directory: Path) -> Checkpoint:
    """The checkpoint in a directory, its weights not read.

    Raises:
        NotImplementedError: matrices are quantised in a way that is not known.
        FileNotFoundError: the directory, config.json or a file of weights is missing.
        ValueError: a file is there, but broken.
    """
    if not directory.is_dir():
        raise FileNotFoundError(
            f"path must be a directory with config.json and {WEIGHTS}, got {str(directory)!r}, which is "
            "not a directory; download the checkpoint first and pass its folder"
        )
    config, generation = read_configs(directory)
    tensors: Mapping[str, Tensor] = _open_files(directory)
    if (settings := _quantization(directory, config)) is not None:
        from maskattn.decoder.quantized import dequantized

        tensors = dequantized(tensors, settings)
    return Checkpoint(directory, config, generation, tensors)


def _quantization(directory: Path, config: dict[str, Any]) -> Mapping[str, Any] | None:
    """How matrices are quantised, taken out of the config; of older GPTQ checkpoints, from a file of its own."""
    settings = config.pop("quantization_config", None)
    if settings is None and (directory / GPTQ).is_file():
        return {"quant_method": "gptq", **read_json(directory, GPTQ)}
    if not isinstance(settings, Mapping | None):
        raise ValueError(
            f"quantization_config of config.json must be an object, got {settings!r:.60}; correct config.json"
        )
    return settings


def _open_files(directory: Path) -> Mapping[str, SafeTensor]:
    if (directory / WEIGHTS).is_file():
        return _open_file(directory / WEIGHTS)
    if (directory / INDEX).is_file():
        return _open_shards(directory)
    others = sorted(entry.name for entry in directory.glob("*model*") if entry.suffix != ".json")
    raise FileNotFoundError(
        f"{WEIGHTS} must be in {str(directory)!r}, got {', '.join(others) or 'no weights'}; load the model with "
        "transformers and write it again, by the class that config.json names in architectures: "
        f"transformers.<class>.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
    )


def _open_file(path: Path) -> dict[str, SafeTensor]:
    file = MappedFile(path, "download it again")
    return {name: SafeTensor(file, name) for name in file.names()}


def _open_shards(directory: Path) -> Mapping[str, SafeTensor]:
    shards = read_json(directory, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{INDEX} must have a weight_map from tensors to files, got none; download it again")
    files: dict[str, dict[str, SafeTensor]] = {}
    for tensor, name in shards.items():
        if name not in files:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{INDEX} must name .safetensors files beside it, got {name!r} for {tensor}")
            if not (directory / name).is_file():
                raise FileNotFoundError(
                    f"{name} must be in {str(directory)!r}, got no such file, but {INDEX} says that it has {tensor}; "
                    "download all shards"
                )
            files[name] = _open_file(directory / name)
        if tensor not in files[name]:
            raise ValueError(f"{name} must have tensor {tensor}, as {INDEX} says, got none; download both again")
    return {tensor: files[name][tensor] for tensor, name in shards.items()}
