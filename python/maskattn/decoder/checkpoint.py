"""A model on disk: its config, and its tensors as float32 or packed, whatever the files are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from maskattn._core import PackedWeight
from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.tensors import Tensor
from maskattn.linear import pack

WEIGHTS = "model.safetensors"
#: Files of a checkpoint besides its weights.
COMPANIONS = ("*.json", "*.model", "*.spm", "*.txt", "*.jinja")
#: Numbers that are read and packed at once, so that a matrix is never there twice.
_PIECE = 1 << 18


class Checkpoint:
    """A checkpoint, opened. Tensors are asked for by name and shape, read then, and come as float32 or packed.

    Attributes:
        directory: where its other files are, such as those of the tokenizer.
        config: config.json as it stands.
        generation: generation_config.json; without that file, config.json, where older checkpoints keep the same keys.
        dtype: of matrices for which ``load`` is not told another one.
    """

    dtype = "float32"

    def __init__(
        self, directory: Path, config: dict[str, Any], generation: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> None:
        self.directory, self.config, self.generation, self._tensors = directory, config, generation, dict(tensors)
        self._used: dict[str, tuple[int, ...]] = {}
        self._keeps_groups = True
        # Weak: layers stack what they take, and a second copy of a whole model would wait here for nobody.
        self._arrays: MutableMapping[str, FloatArray] = WeakValueDictionary()
        self._weights: MutableMapping[tuple[str, ...], PackedWeight] = WeakValueDictionary()

    def choose(self, dtype: str | None) -> str:
        """The dtype of matrices that the file has as floats; 4-bit groups stay groups if no floats are asked for."""
        self._keeps_groups = dtype not in ("float32", "bfloat16")
        return dtype or self.dtype

    def remember(self) -> None:
        """Hold on to all that is asked for from now on, for ``asked``."""
        self._arrays, self._weights = {}, {}

    def asked(
        self,
    ) -> tuple[Mapping[str, FloatArray], Mapping[tuple[str, ...], PackedWeight], Mapping[str, tuple[int, ...]]]:
        """What was asked for and is in use: tensors, weights by dtype and names, and the shapes of all these names."""
        return self._arrays, self._weights, self._used

    def companions(self) -> list[Path]:
        """The files beside the weights, such as those of the tokenizer."""
        found = sorted(file for pattern in COMPANIONS for file in self.directory.glob(pattern))
        return [file for file in found if not file.name.endswith(".index.json")]

    @property
    def parameters(self) -> int:
        """Numbers in the tensors read so far; a tensor that serves twice counts once."""
        return sum(map(math.prod, self._used.values()))

    def close(self) -> None:
        """Let go of the files of weights; config and folder stay."""
        self._tensors.clear()

    def names(self) -> list[str]:
        """All tensors of the files."""
        return list(self._tensors)

    def stored(self) -> dict[str, int]:
        """Numbers in all tensors, by the dtype in which they are stored."""
        counts: dict[str, int] = {}
        for tensor in self._tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
        return counts

    def find(self, names: Sequence[str]) -> str | None:
        """The first of ``names`` that the files have."""
        return next((name for name in names if name in self._tensors), None)

    def rows(self, name: str) -> int:
        """The first extent of a tensor that is there; 0 for a number without extents."""
        shape = self._tensors[name].shape
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
            array = self._tensors[name].float32()
            self._used[name], self._arrays[name] = shape, array
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
        found = [
            self._named(names, (outputs, inputs), (inputs, outputs) if transposed else None) for names, outputs in parts
        ]
        tensors = [self._tensors[name] for name in found]
        group = math.gcd(*(tensor.group for tensor in tensors)) if self._keeps_groups else 0
        if ready := group > 0 and all(tensor.group for tensor in tensors):
            dtype = "int4" if all(tensor.symmetric for tensor in tensors) else "uint4"
        key = (dtype, *found)
        weight = self._weights.get(key)
        if weight is None:
            outputs = [outputs for _, outputs in parts]
            weight = (
                PackedWeight(sum(outputs), inputs, dtype, group) if ready else PackedWeight(sum(outputs), inputs, dtype)
            )
            for first, tensor in zip(accumulate(outputs, initial=0), tensors, strict=False):
                self._fill(weight, first, tensor, transposed, ready)
            self._weights[key] = weight
            self._used.update((tensor.name, (count, inputs)) for tensor, count in zip(tensors, outputs, strict=True))
        return weight

    def _fill(self, weight: PackedWeight, first: int, tensor: Tensor, transposed: bool, ready: bool) -> None:
        """The rows of a weight from ``first`` on: those of a tensor, as they are if they are ``ready`` groups."""
        outputs, inputs = tensor.shape if tensor.oriented or not transposed else tensor.shape[::-1]
        piece = max(_PIECE // inputs // 64, 1) * 64
        for start in range(0, outputs, piece):
            stop = min(start + piece, outputs)
            if ready:
                q, scales, zeros = tensor.groups(start, stop, weight.group)
                weight.fill_groups(first + start, q, scales, None if weight.dtype == "int4" else zeros)
            else:
                weight.fill(first + start, tensor.rows(start, stop, transposed and not tensor.oriented))
        tensor.forget()

    def arranged(
        self,
        names: Sequence[str],
        shape: tuple[int, ...],
        dtype: str,
        arrange: Callable[[FloatArray], FloatArray],
    ) -> PackedWeight:
        """A packed weight of the matrix that ``arrange`` makes of a tensor of ``shape``, read whole.

        The tensor's first axis are its outputs, in whatever order, all others its inputs.

        Raises:
            ValueError: as of ``tensor``.
        """
        name = self._named(names, shape)
        key = (dtype, name)
        weight = self._weights.get(key)
        if weight is None:
            weight = self._weights[key] = pack(arrange(self._tensors[name].rows(0, shape[0])), dtype)
            self._used[name] = shape
        return weight

    def _named(self, names: Sequence[str], shape: tuple[int, ...], transposed: tuple[int, ...] | None = None) -> str:
        """The first of ``names`` that there are; of shape ``transposed``, if that is given, unless it is oriented."""
        name = self.find(names)
        if name is None:
            where = next((tensor.file for tensor in self._tensors.values()), WEIGHTS)
            raise ValueError(
                f"{where} must have tensor {' or '.join(names)} of shape {transposed or shape}, got none "
                f"of that name among {len(self._tensors)} tensors; save the whole model with save_pretrained"
            )
        tensor = self._tensors[name]
        wanted = shape if transposed is None or tensor.oriented else transposed
        if tensor.shape != wanted:
            raise ValueError(
                f"{name} must have shape {wanted}, as config.json says, got {tensor.shape} in {tensor.file}; "
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
        left = {name for name, tensor in self._tensors.items() if not tensor.optional} - set(self._used) - set(known)
        if stray := sorted(name for name in left if not any(fnmatchcase(name, pattern) for pattern in unused)):
            raise ValueError(
                f"{self._tensors[stray[0]].file} must hold the tensors of the model that config.json describes, got "
                f"{stray[0]} besides ({len(stray)} such tensors); take config.json and the weights from the same model"
            )


def read_configs(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and generation_config.json, or the first again. Errors as of ``read_json``."""
    config = read_json(directory, "config.json")
    has_generation = (directory / "generation_config.json").is_file()
    return config, read_json(directory, "generation_config.json") if has_generation else config


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
