"""Packed checkpoints: folders whose weights stand in one file as products read them, so that loading is mapping it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from maskattn._core import PackedWeight
from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.checkpoint import Checkpoint, read_configs
from maskattn.decoder.mapped import MappedFile
from maskattn.decoder.tensors import Tensor

FILE = "maskattn.safetensors"
#: Of the file's own metadata and of the layout of packed weights: whoever changes either of the two adds one.
VERSION = 1
#: Weights begin at multiples of it, as kernels load them.
ALIGNMENT = 64
#: What the metadata is called in the header, and what is behind the names of packed weights there.
METADATA, PACKED = "maskattn", ".packed"


class PackedCheckpoint(Checkpoint):
    """A checkpoint that ``convert`` wrote. Weights are not read but mapped, and shared by all processes that load it.

    Whether floats are finite was looked at when it was converted, and is not again: that would be to read them.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken, or was written by another version, or for another
            family than config.json's.
    """

    def __init__(self, directory: Path) -> None:
        config, generation = read_configs(directory)
        self._file = MappedFile(directory / FILE, "convert the model again")
        facts = _read_facts(self._file, config.get("model_type"))
        self.dtype, self._asked = facts["dtype"] or "float32", facts["dtype"]
        self._stored = [_Stored.read(self._file, entry) for entry in facts["weights"]]
        self._places = {tuple(stored.shapes): stored for stored in self._stored}
        tensors: dict[str, Tensor] = {}
        for name, kind in self._file.kinds.items():
            if kind == "F32":
                tensors[name] = _Mapped(name, FILE, self._file.shapes[name], kind)
        for stored in self._stored:
            for name, shape in stored.shapes.items():
                tensors[name] = _Mapped(name, FILE, shape, stored.dtype)
        super().__init__(directory, config, generation, tensors)

    def choose(self, dtype: str | None) -> str:
        """Raises ValueError where another dtype is asked for than the file was packed in."""
        stored = sorted({stored.dtype for stored in self._stored})
        if dtype not in (None, self._asked) and stored != [dtype]:
            raise ValueError(
                f"dtype must be left out, or be that in which {FILE} is packed, {' and '.join(stored)}, got {dtype!r}; "
                "convert the model again in that dtype"
            )
        return self.dtype

    def tensor(self, names: Sequence[str], shape: tuple[int, ...]) -> FloatArray:
        name = self._named(names, shape)
        if self._file.kinds.get(name) != "F32":
            raise self._file.broken(f"{name} as float32", "a packed weight of that name")
        array = self._file.array(name)
        if not array.flags.aligned:
            raise self._file.broken(f"{name} at a multiple of its item's size", "another place")
        self._used[name], self._arrays[name] = shape, array
        return array

    def packed(
        self, parts: Sequence[tuple[Sequence[str], int]], inputs: int, dtype: str, *, transposed: bool = False
    ) -> PackedWeight:
        return self._over([self._named(names, (outputs, inputs)) for names, outputs in parts])

    def arranged(
        self, names: Sequence[str], shape: tuple[int, ...], dtype: str, arrange: Callable[[FloatArray], FloatArray]
    ) -> PackedWeight:
        return self._over([self._named(names, shape)])

    def _over(self, names: list[str]) -> PackedWeight:
        stored = self._places.get(tuple(names))
        if stored is None:
            raise self._file.broken(f"{' and '.join(names)} as one packed weight", "none of these tensors")
        key = (stored.dtype, *names)
        weight = self._weights.get(key)
        if weight is None:
            weight = self._weights[key] = stored.over(self._file)
            self._used.update(stored.shapes)
        return weight


class _Mapped(Tensor):
    """What the file says of a tensor."""

    oriented = True

    def _read(self, start: int | None, stop: int | None, transposed: bool) -> npt.NDArray[Any]:
        raise NotImplementedError(f"{self.name} is mapped, not read")


@dataclass(frozen=True)
class _Stored:
    """A packed weight, as the metadata describes it.

    Attributes:
        shapes: tensors of the model that it was made of, in order: outputs first, then all inputs.
    """

    shapes: dict[str, tuple[int, ...]]
    dtype: str
    group: int

    @staticmethod
    def read(file: MappedFile, entry: Any) -> _Stored:
        try:
            shapes = {str(name): tuple(shape) for name, shape in entry["tensors"]}
            stored = _Stored(shapes, entry["dtype"], entry["group"])
        except (KeyError, TypeError, ValueError):
            raise file.broken("tensors, dtype and group of each weight", f"{entry!r:.80}") from None
        numbers = [stored.group, *(number for shape in shapes.values() for number in shape)]
        if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(stored.dtype, str):
            raise file.broken("integers as extents and group of each weight, and a dtype", f"{entry!r:.80}")
        if len({math.prod(shape[1:]) for shape in shapes.values()}) != 1 or not all(shapes.values()):
            raise file.broken("tensors of the same inputs in a weight", f"{entry!r:.80}")
        return stored

    def over(self, file: MappedFile) -> PackedWeight:
        name = packed_name(list(self.shapes))
        if file.kinds.get(name) != "U8":
            raise file.broken(f"{name} in bytes", file.kinds.get(name, "none"))
        outputs = sum(shape[0] for shape in self.shapes.values())
        inputs = math.prod(next(iter(self.shapes.values()))[1:])
        try:
            return PackedWeight.over(outputs, inputs, self.dtype, file.array(name), self.group or 32)
        except (ValueError, TypeError) as error:
            raise file.broken(f"{name} as its metadata says", str(error)) from error


def packed_name(tensors: Sequence[str]) -> str:
    """What the weight made of these tensors is called in the file."""
    return "+".join(tensors) + PACKED


def _read_facts(file: MappedFile, family: object) -> dict[str, Any]:
    try:
        facts = json.loads(file.metadata[METADATA])
        version, written_for, dtype, weights = (facts[key] for key in ("version", "family", "dtype", "weights"))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise file.broken("metadata of maskattn", f"{file.metadata!r:.80}") from None
    if version != VERSION:
        raise file.broken(f"version {VERSION} of packed weights", f"{version!r:.20}")
    if written_for != family:
        raise file.broken(f"the weights of a {family} model, as config.json says", f"those of {written_for!r:.40}")
    if not isinstance(weights, list) or not isinstance(dtype, str | None):
        raise file.broken("a list of weights and a dtype in its metadata", f"{file.metadata!r:.80}")
    return dict(facts)
