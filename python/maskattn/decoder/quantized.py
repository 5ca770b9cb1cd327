"""Checkpoints with 4-bit groups, as quantisation tools write them: GPTQ, AWQ, and compressed-tensors' "pack-quantized".

In all of them ``weight = (q - zero) * scale``, one zero and one scale for each output and group of inputs, and eight q
in an int32. Which modules are quantised is told by the tensors that are there, not by the config.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.tensors import Groups, SafeTensor, Tensor

#: The largest group of inputs that packed weights have one scale for.
_MOST = 1024


class GroupedTensor(Tensor):
    """A matrix (outputs, inputs) of 4-bit numbers in groups of inputs.

    Attributes:
        parts: its tensors in the file, by what is behind the module's name.
    """

    oriented = True
    #: What is behind the module's name in the tensors of a quantised matrix, and in those that may be missing. By the
    #: first a matrix is known to be quantised.
    suffixes: ClassVar[tuple[str, ...]]
    extras: ClassVar[tuple[str, ...]] = ()

    def __init__(self, module: str, parts: Mapping[str, SafeTensor], settings: Mapping[str, Any]) -> None:
        first = parts[self.suffixes[0]]
        self.parts, self._settings = parts, settings
        super().__init__(f"{module}.weight", first.file, self._extents(), "4-bit groups")

    @property
    def group(self) -> int:
        """The largest group of packed weights that lies in one group of the file; 0: none, or with a loss."""
        scales, _, group_of = self._tables
        inputs, size = self.shape[1], self._group_size(scales.shape[1])
        with np.errstate(over="ignore"):
            exact = (scales.astype(np.float16) == scales).all()
        if not exact or (group_of != np.arange(inputs) // size).any():
            return 0
        common = math.gcd(size, inputs)
        return max((group for group in range(32, min(common, _MOST) + 1, 32) if common % group == 0), default=0)

    @property
    def symmetric(self) -> bool:
        return bool((self._tables[1] == 8).all())

    def forget(self) -> None:
        self.__dict__.pop("_tables", None)

    def groups(self, start: int, stop: int, group: int) -> Groups:
        scales, zeros, group_of = self._tables
        first = group_of[::group]
        of_rows = [np.ascontiguousarray(table[start:stop, first]) for table in (scales, zeros)]
        return self._numbers(start, stop), of_rows[0], of_rows[1]

    def _read(self, start: int | None, stop: int | None, transposed: bool) -> FloatArray:
        start, stop = start or 0, self.shape[0] if stop is None else stop
        scales, zeros, group_of = self._tables
        return (self._numbers(start, stop) - zeros[start:stop, group_of]) * scales[start:stop, group_of]

    @cached_property
    def _tables(self) -> tuple[FloatArray, FloatArray, IntArray]:
        """Scales and zeros (outputs, groups), and the group of each input."""
        scales, zeros = self._read_scales(), self._read_zeros()
        if scales.shape != zeros.shape or scales.shape[0] != self.shape[0]:
            raise self._misfit("scales and zeros of the same groups", f"{scales.shape} and {zeros.shape}")
        return scales, zeros, self._read_groups(scales.shape[1])

    def _group_size(self, groups: int) -> int:
        """Inputs of a group, all of them for -1."""
        size = self._settings.get("group_size", -1)
        inputs = self.shape[1]
        whole: int = inputs if size == -1 else size
        if type(whole) is not int or whole < 1 or -(-inputs // whole) != groups:
            raise self._misfit(f"a group_size that makes {groups} groups of {inputs} inputs", f"{size!r:.20}")
        return whole

    def _read_groups(self, groups: int) -> IntArray:
        """The group of each input: in order, or as g_idx says."""
        inputs = self.shape[1]
        found = next((part for suffix, part in self.parts.items() if suffix.endswith("g_idx")), None)
        if found is None:
            return np.arange(inputs) // self._group_size(groups)
        order: IntArray = np.asarray(found.stored(), np.int64)
        if order.shape != (inputs,) or (order.size and not 0 <= order.min() <= order.max() < groups):
            raise self._misfit(f"a group from 0 to {groups - 1} for each of {inputs} inputs in g_idx", f"{order!r:.60}")
        return order

    def _words(self, suffix: str, *places: slice) -> npt.NDArray[np.uint32]:
        """int32 words of a part as bits."""
        part = self.parts[suffix]
        if part.dtype != "I32":
            raise self._misfit(f"{suffix} as I32", part.dtype)
        return np.ascontiguousarray(part.stored(*places)).view(np.uint32)

    def _misfit(self, wanted: str, got: str) -> ValueError:
        return ValueError(
            f"{self.name} must have {wanted}, got {got} in {self.file}; take config.json and the weights from the same "
            "model"
        )

    @abstractmethod
    def _extents(self) -> tuple[int, int]:
        """(outputs, inputs)."""

    @abstractmethod
    def _read_scales(self) -> FloatArray:
        """(outputs, groups)."""

    @abstractmethod
    def _read_zeros(self) -> FloatArray:
        """(outputs, groups)."""

    @abstractmethod
    def _numbers(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """(stop - start, inputs), from 0 to 15."""


class Gptq(GroupedTensor):
    """AutoGPTQ and GPTQModel (arXiv:2210.17323): qweight (inputs / 8, outputs), qzeros (groups, outputs / 8).

    Format "gptq" stores zeros less one, subtracted from whole words, so that they are added to whole words here; format
    "gptq_v2" stores them as they are.
    """

    suffixes = ("qweight", "qzeros", "scales")
    extras = ("g_idx",)

    def _extents(self) -> tuple[int, int]:
        rows, outputs = self.parts["qweight"].shape
        return outputs, 8 * rows

    def _read_scales(self) -> FloatArray:
        return np.ascontiguousarray(self.parts["scales"].float32().T)

    def _read_zeros(self) -> FloatArray:
        words = self._words("qzeros")
        form = self._settings.get("checkpoint_format") or self._settings.get("format") or "gptq"
        if form == "gptq":
            words = words + np.uint32(0x11111111)
        return np.ascontiguousarray(_nibbles(words, -1).T, np.float32)

    def _numbers(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(_nibbles(self._words("qweight", slice(None), slice(start, stop)), 0).T)


class Awq(GroupedTensor):
    """AutoAWQ's "gemm" (arXiv:2306.00978): qweight (inputs, outputs / 8), qzeros (groups, outputs / 8), interleaved."""

    suffixes = ("qweight", "qzeros", "scales")
    #: Where in its word each of eight outputs stands.
    places = (0, 4, 1, 5, 2, 6, 3, 7)

    def _extents(self) -> tuple[int, int]:
        inputs, words = self.parts["qweight"].shape
        return 8 * words, inputs

    def _read_scales(self) -> FloatArray:
        return np.ascontiguousarray(self.parts["scales"].float32().T)

    def _read_zeros(self) -> FloatArray:
        return np.ascontiguousarray(_nibbles(self._words("qzeros"), -1, self.places).T, np.float32)

    def _numbers(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        words = self._words("qweight", slice(None), slice(start // 8, -(-stop // 8)))
        found = _nibbles(words, -1, self.places)[:, start % 8 : start % 8 + stop - start]
        return np.ascontiguousarray(found.T)


class PackQuantized(GroupedTensor):
    """compressed-tensors' "pack-quantized": weight_packed (outputs, inputs / 8), from -8 to 7 stored as 0 to 15."""

    suffixes = ("weight_packed", "weight_scale", "weight_shape")
    extras = ("weight_zero_point", "weight_g_idx")

    def _extents(self) -> tuple[int, int]:
        shape = [int(extent) for extent in self.parts["weight_shape"].stored()]
        found = self.parts["weight_packed"].shape
        if len(shape) != 2 or len(found) != 2 or shape[0] != found[0] or -(-shape[1] // 8) != found[1]:
            module = self.parts["weight_packed"].name
            raise ValueError(f"{module} must have the words of weight_shape {shape}, got {found}; download it again")
        return shape[0], shape[1]

    def _read_scales(self) -> FloatArray:
        return self.parts["weight_scale"].float32()

    def _read_zeros(self) -> FloatArray:
        if "weight_zero_point" not in self.parts:
            return np.full_like(self._read_scales(), 8)
        return _nibbles(self._words("weight_zero_point"), 0)[: self.shape[0]].astype(np.float32)

    def _numbers(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(_nibbles(self._words("weight_packed", slice(start, stop)), -1)[:, : self.shape[1]])


def _nibbles(
    words: npt.NDArray[np.uint32], axis: int, places: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
) -> npt.NDArray[np.uint8]:
    """Eight 4-bit numbers of each word, side by side along ``axis``; ``places``: where each stands, from the lowest."""
    parts = [(words >> np.uint32(4 * place) & np.uint32(15)).astype(np.uint8) for place in places]
    shape = list(words.shape)
    shape[axis] *= 8
    return np.stack(parts, axis=words.ndim if axis == -1 else axis + 1).reshape(shape)


def dequantized(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with those of each quantised module as one, its weight.

    Args:
        settings: ``quantization_config`` of config.json.

    Raises:
        NotImplementedError: they are of another method or form, or have not 4 bits.
        ValueError: a tensor is missing or does not fit the others.
    """
    kind, settings = _known(settings)
    made = dict(tensors)
    for name in tensors:
        module, _, suffix = name.rpartition(".")
        if suffix != kind.suffixes[0]:
            continue
        parts: dict[str, SafeTensor] = {}
        for part in (*kind.suffixes, *kind.extras):
            found = made.pop(f"{module}.{part}", None)
            if isinstance(found, SafeTensor):
                parts[part] = found
                if len(found.shape) != (axes := 1 if part.endswith(("g_idx", "shape")) else 2):
                    raise ValueError(f"{found.name} must have {axes} axes, got {found.shape}; download it again")
            elif part in kind.suffixes:
                raise ValueError(f"{module} must have {module}.{part} beside {name}, got none; download all shards")
        made[f"{module}.weight"] = kind(module, parts, settings)
        if bias := made.get(f"{module}.bias"):
            # AutoGPTQ wrote zeros where a model has no bias.
            bias.optional = not bias.float32().any()
    return made


def _known(settings: Mapping[str, Any]) -> tuple[type[GroupedTensor], Mapping[str, Any]]:
    """The class of a method's tensors, and the settings that it reads."""
    method = settings.get("quant_method")
    if method == "gptq":
        form = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        _require("bits", settings.get("bits"), [4])
        _require("checkpoint_format", form, ["gptq", "gptq_v2"])
        return Gptq, settings
    if method == "awq":
        form = settings.get("version") or settings.get("format") or "gemm"
        _require("bits", settings.get("bits", settings.get("w_bit")), [4])
        _require("version", form.lower() if isinstance(form, str) else form, ["gemm"])
        return Awq, {"group_size": settings.get("group_size", settings.get("q_group_size"))}
    if method == "compressed-tensors":
        _require("format", settings.get("format"), ["pack-quantized"])
        groups = settings.get("config_groups")
        schemes = list(groups.values()) if isinstance(groups, Mapping) else []
        if (
            len(schemes) != 1
            or not isinstance(schemes[0], Mapping)
            or not isinstance(schemes[0].get("weights"), Mapping)
        ):
            _require("config_groups", groups, ["one group with weights"])
        weights = schemes[0]["weights"]
        _require("num_bits", weights.get("num_bits"), [4])
        _require("type", weights.get("type"), ["int"])
        _require("strategy", weights.get("strategy"), ["group", "channel"])
        _require("input_activations", schemes[0].get("input_activations"), [None])
        return PackQuantized, {"group_size": weights.get("group_size") or -1}
    _require("quant_method", method, ["gptq", "awq", "compressed-tensors"])
    raise AssertionError


def _require(key: str, value: object, known: list[Any]) -> None:
    if value not in known or isinstance(value, bool):
        raise NotImplementedError(
            f"{key} of quantization_config in config.json must be {' or '.join(map(repr, known))}, got {value!r:.60}, "
            "which is not implemented; take the model in floats, or quantised to 4 bits by GPTQ or AWQ"
        )
