"""Hugging Face checkpoint directories: config.json, generation_config.json and safetensors files, one or in shards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import ml_dtypes  # noqa: F401 - so that safetensors may read bfloat16
import numpy as np

from maskattn._core import PackedWeight
from maskattn.decoder.arrays import FloatArray

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")
#: Numbers that are read and packed at once, so that a matrix is never there twice.
_PIECE = 1 << 20
#: Bytes of a file after which it is opened anew.
_MAPPED = 16 << 20


class Checkpoint:
    """A checkpoint directory, opened. Tensors are asked for by name and shape, read then, and come as float32.

    Attributes:
        config: config.json as it stands.
        generation: generation_config.json; without that file, config.json, where older checkpoints keep the same keys.

    Raises:
        FileNotFoundError: the directory, config.json or a file of weights is missing.
        ValueError: a file is there, but broken.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise FileNotFoundError(
                f"path must be a directory with config.json and {WEIGHTS}, got {str(directory)!r}, which is "
                "not a directory; download the checkpoint first and pass its folder"
            )
        self.directory = directory
        self.config = read_json(directory, "config.json")
        has_generation = (directory / "generation_config.json").is_file()
        self.generation = read_json(directory, "generation_config.json") if has_generation else self.config
        self._files = _open_files(directory)
        self._sizes: dict[str, int] = {}
        # Weak: layers stack what they take, and a second copy of a whole model would wait here for nobody.
        self._arrays: WeakValueDictionary[str, FloatArray] = WeakValueDictionary()
        self._weights: WeakValueDictionary[tuple[str, ...], PackedWeight] = WeakValueDictionary()

    @property
    def parameters(self) -> int:
        """Numbers in the tensors read so far; a tensor that serves twice counts once."""
        return sum(self._sizes.values())

    def close(self) -> None:
        """Let go of the files of weights; config and folder stay."""
        self._files.clear()

    def names(self) -> list[str]:
        """All tensors of the files."""
        return list(self._files)

    def stored(self) -> dict[str, int]:
        """Numbers in all tensors, by the dtype in which they are stored."""
        counts: dict[str, int] = {}
        for name, file in self._files.items():
            dtype = file.dtype(name)
            counts[dtype] = counts.get(dtype, 0) + math.prod(file.shape(name))
        return counts

    def find(self, names: Sequence[str]) -> str | None:
        """The first of ``names`` that the files have."""
        return next((name for name in names if name in self._files), None)

    def rows(self, name: str) -> int:
        """The first extent of a tensor that is there; 0 for a number without extents."""
        shape = self._files[name].shape(name)
        return shape[0] if shape else 0

    def tensor(self, names: Sequence[str], shape: tuple[int, ...]) -> FloatArray:
        """The first of ``names`` that the files have, as float32; asked again while it is in use, the same array.

        Raises:
            ValueError: none is there, its shape is not ``shape``, its dtype is not float32, float16 or bfloat16, or it
                holds a number that is not finite.
        """
        name = self._named(names, shape)
        array = self._arrays.get(name)
        if array is None:
            array = self._files[name].float32(name)
            self._sizes[name], self._arrays[name] = array.size, array
        return array

    def packed(
        self, parts: Sequence[tuple[Sequence[str], int]], inputs: int, dtype: str, *, transposed: bool = False
    ) -> PackedWeight:
        """Matrices of the same inputs as one packed weight, a piece at a time; asked again while in use, the same one.

        Args:
            parts: names and outputs of each.
            transposed: they are stored as (inputs, outputs).

        Raises:
            ValueError: as of ``tensor``.
        """
        shapes = [(inputs, outputs) if transposed else (outputs, inputs) for _, outputs in parts]
        found = [self._named(names, shape) for (names, _), shape in zip(parts, shapes, strict=True)]
        key = (dtype, *found)
        weight = self._weights.get(key)
        if weight is None:
            weight = PackedWeight(sum(outputs for _, outputs in parts), inputs, dtype)
            first = 0
            for name, (_, outputs) in zip(found, parts, strict=True):
                piece = max(_PIECE // inputs // 64, 1) * 64
                for start in range(0, outputs, piece):
                    rows = self._files[name].rows(name, start, min(start + piece, outputs), transposed)
                    weight.fill(first + start, rows)
                first += outputs
                self._sizes[name] = inputs * outputs
            self._weights[key] = weight
        return weight

    def _named(self, names: Sequence[str], shape: tuple[int, ...]) -> str:
        """The first of ``names`` that the files have, with that shape."""
        name = self.find(names)
        if name is None:
            where = self._files.get(next(iter(self._files), ""))
            raise ValueError(
                f"{where.name if where else WEIGHTS} must have tensor {' or '.join(names)} of shape {shape}, got none "
                f"of that name among {len(self._files)} tensors; save the whole model with save_pretrained"
            )
        if (found := self._files[name].shape(name)) != shape:
            raise ValueError(
                f"{name} must have shape {shape}, as config.json says, got {found} in {self._files[name].name}; "
                "take config.json and the weights from the same model"
            )
        return name

    def check_all_used(self, known: Sequence[str], unused: Sequence[str]) -> None:
        """Refuse a file with tensors that nobody asked for: config.json describes another model.

        Args:
            known: names that another tensor took the place of.
            unused: patterns of names that may stay unread.

        Raises:
            ValueError: there is such a tensor.
        """
        left = set(self._files) - set(self._sizes) - set(known)
        if stray := sorted(name for name in left if not any(fnmatchcase(name, pattern) for pattern in unused)):
            raise ValueError(
                f"{self._files[stray[0]].name} must hold the tensors of the model that config.json describes, got "
                f"{stray[0]} besides ({len(stray)} such tensors); take config.json and the weights from the same model"
            )


class _File:
    """A safetensors file, opened: its header has been read and checked, its tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path
        self._open()
        self.tensors: list[str] = list(self._file.keys())

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        opened = cast("Any", safe_open)
        try:
            self._file, self._read = opened(self._path, framework="np"), 0
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.name} must be a safetensors file, got {error}; download it again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return str(self._file.get_slice(name).get_dtype())

    def float32(self, name: str) -> FloatArray:
        return self._checked(name, lambda: self._file.get_tensor(name))

    def rows(self, name: str, start: int, stop: int, transposed: bool) -> FloatArray:
        """Rows of a matrix, or columns as rows."""
        if transposed:
            return self._checked(name, lambda: self._file.get_slice(name)[:, start:stop].T)
        return self._checked(name, lambda: self._file.get_slice(name)[start:stop])

    def _checked(self, name: str, read: Callable[[], Any]) -> FloatArray:
        dtype = self.dtype(name)
        if dtype not in _DTYPES:
            raise ValueError(
                f"{name} must be stored as F32, F16 or BF16, got {dtype} in {self.name}; "
                "save the model in one of these dtypes"
            )
        found = read()
        # What has been read stays mapped while the file is open, and counts as ours.
        self._read += found.nbytes
        if self._read > _MAPPED:
            self._open()
        tensor = np.ascontiguousarray(found, np.float32)
        # The extremes of an array with a NaN are NaN: two passes and no array of flags.
        if tensor.size and not np.isfinite([tensor.min(), tensor.max()]).all():
            raise ValueError(
                f"{name} must hold finite numbers, got NaN or infinity in {self.name}; download it again, or save the "
                "model in float32 if it was converted to float16"
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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be valid JSON, got {error}; download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a JSON object, got a {type(content).__name__}; download it again")
    return content


def _open_files(directory: Path) -> dict[str, _File]:
    """Tensor -> the file that holds it."""
    if (directory / WEIGHTS).is_file():
        file = _File(directory / WEIGHTS)
        return dict.fromkeys(file.tensors, file)
    if (directory / INDEX).is_file():
        return _open_shards(directory)
    others = sorted(entry.name for entry in directory.glob("*model*") if entry.suffix != ".json")
    raise FileNotFoundError(
        f"{WEIGHTS} must be in {str(directory)!r}, got {', '.join(others) or 'no weights'}; load the model with "
        "transformers and write it again, by the class that config.json names in architectures: "
        f"transformers.<class>.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
    )


def _open_shards(directory: Path) -> dict[str, _File]:
    shards = read_json(directory, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{INDEX} must have a weight_map from tensors to files, got none; download it again")
    files: dict[str, _File] = {}
    for tensor, name in shards.items():
        if name not in files:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{INDEX} must name .safetensors files beside it, got {name!r} for {tensor}")
            if not (directory / name).is_file():
                raise FileNotFoundError(
                    f"{name} must be in {str(directory)!r}, got no such file, but {INDEX} says that it has {tensor}; "
                    "download all shards"
                )
            files[name] = _File(directory / name)
        if tensor not in files[name].tensors:
            raise ValueError(f"{name} must have tensor {tensor}, as {INDEX} says, got none; download both again")
    return {tensor: files[name] for tensor, name in shards.items()}
