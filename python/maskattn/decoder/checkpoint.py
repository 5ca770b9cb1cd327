"""Hugging Face checkpoint directories: config.json, generation_config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray


class Checkpoint:
    """A checkpoint directory, opened. Tensors are asked for by name and shape and come as float32.

    Attributes:
        config: config.json as it stands.
        generation: generation_config.json; without that file, config.json, where older checkpoints keep the same keys.

    Raises:
        FileNotFoundError: the directory, config.json or model.safetensors is missing.
        ValueError: a file is there, but broken.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise FileNotFoundError(
                f"path must be a directory with config.json and model.safetensors, got {str(directory)!r}, which is "
                "not a directory; download the checkpoint first and pass its folder"
            )
        self.directory = directory
        self.config = read_json(directory, "config.json")
        has_generation = (directory / "generation_config.json").is_file()
        self.generation = read_json(directory, "generation_config.json") if has_generation else self.config
        self._raw = _read_tensors(directory)
        self._read: dict[str, FloatArray] = {}

    @property
    def parameters(self) -> int:
        """Numbers in the tensors read so far; a tensor that serves twice counts once."""
        return sum(tensor.size for tensor in self._read.values())

    def find(self, names: Sequence[str]) -> str | None:
        """The first of ``names`` that the file has."""
        return next((name for name in names if name in self._raw), None)

    def tensor(self, names: Sequence[str], shape: tuple[int, ...]) -> FloatArray:
        """The first of ``names`` that the file has, as float32; asked again, the same array.

        Raises:
            ValueError: none is there, its shape is not ``shape``, or its dtype is not float32, float16 or bfloat16.
        """
        name = self.find(names)
        if name is None:
            raise ValueError(
                f"model.safetensors must have tensor {' or '.join(names)} of shape {shape}, got none of that name "
                f"among {len(self._raw)} tensors; save the whole model with save_pretrained"
            )
        if name not in self._read:
            self._read[name] = _to_float32(name, self._raw[name])
        tensor = self._read[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape}, as config.json says, got {tensor.shape}; "
                "take config.json and model.safetensors from the same model"
            )
        return tensor


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads((directory / name).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name} must be in {str(directory)!r}, got no such file; pass the folder that save_pretrained wrote"
        ) from None
    except ValueError as error:
        raise ValueError(f"{name} must be valid JSON, got {error}; download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a JSON object, got a {type(content).__name__}; download it again")
    return content


def _read_tensors(directory: Path) -> dict[str, dict[str, Any]]:
    """Every tensor of model.safetensors, still as bytes: name -> dtype, shape, data."""
    from safetensors import SafetensorError, deserialize

    file = directory / "model.safetensors"
    if not file.is_file():
        others = sorted(entry.name for entry in directory.glob("*model*") if entry.suffix != ".json")
        raise FileNotFoundError(
            f"model.safetensors must be in {str(directory)!r}, got {', '.join(others) or 'no weights'}; "
            "load the model with transformers and write it in one file by save_pretrained(..., max_shard_size='100GB')"
        )
    try:
        return dict(deserialize(file.read_bytes()))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"model.safetensors must be a safetensors file, got {error}; download it again") from error


def _to_float32(name: str, raw: dict[str, Any]) -> FloatArray:
    data, dtype = raw["data"], raw["dtype"]
    flat: FloatArray
    if dtype == "F32":
        flat = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    elif dtype == "F16":
        flat = np.frombuffer(data, "<f2").astype(np.float32)
    elif dtype == "BF16":
        # A bfloat16 is the upper half of a float32, so no dtype of another package is needed to read it.
        flat = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        raise ValueError(
            f"{name} must be stored as F32, F16 or BF16, got {dtype}; save the model in one of these dtypes"
        )
    tensor: FloatArray = flat.reshape(raw["shape"])
    return tensor
