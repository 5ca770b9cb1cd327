"""Rotary positions (arXiv:2104.09864) and the scalings that stretch them, by the names that config.json uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray

Parameters = Mapping[str, Any]
#: Lengths of sequences (batch,) -> frequencies (batch or 1, rotary_dim / 2).
Frequencies = Callable[[IntArray], FloatArray]


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which pairs of coordinates turn, each (batch or 1, 1, len, rotary_dim / 2)."""

    cos: FloatArray
    sin: FloatArray

    def __call__(self, x: FloatArray) -> FloatArray:
        """Turn the first ``rotary_dim`` coordinates of (batch, heads, len, head_dim), each with the one half beyond."""
        half = self.cos.shape[-1]
        turned = np.empty_like(x)
        first, second = x[..., :half], x[..., half : 2 * half]
        turned[..., :half] = first * self.cos - second * self.sin
        turned[..., half : 2 * half] = second * self.cos + first * self.sin
        turned[..., 2 * half :] = x[..., 2 * half :]
        return turned


@dataclass(frozen=True)
class Rope:
    """``frequencies`` of the angles per position, and ``factor`` on cosines and sines."""

    frequencies: Frequencies
    factor: float = 1.0
    #: Sequences that grow past it are computed anew, since keys turn otherwise from there on; None: nothing changes.
    switch: int | None = None

    def rotation(self, positions: IntArray, lengths: IntArray) -> Rotation:
        """
        Args:
            positions: shape (batch, len).
            lengths: shape (batch,): how long each sequence is, these positions included.
        """
        return self._turn(positions[:, None, :, None].astype(np.float32) * self.frequencies(lengths)[:, None, None, :])

    def rotation_of_rows(self, positions: IntArray, lengths: IntArray) -> Rotation:
        """The same for positions (rows,), each with its sequence's length: cosines and sines (rows, rotary_dim / 2)."""
        return self._turn(positions[:, None].astype(np.float32) * self.frequencies(lengths))

    def _turn(self, angles: FloatArray) -> Rotation:
        factor = np.float32(self.factor)
        return Rotation(np.cos(angles) * factor, np.sin(angles) * factor)


def _inverse_powers(base: float | FloatArray, dim: int) -> FloatArray:
    """base ** (-2 i / dim), in float32 as the models were trained."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers: FloatArray = np.reciprocal(np.power(np.asarray(base, np.float32)[..., None], exponents))
    return np.atleast_2d(powers)


def _plain(dim: int, rope: Parameters) -> Rope:
    frequencies = _inverse_powers(rope["rope_theta"], dim)
    return Rope(lambda lengths: frequencies)


def _linear(dim: int, rope: Parameters) -> Rope:
    """Positions divided by ``factor`` (arXiv:2306.15595)."""
    frequencies = _inverse_powers(rope["rope_theta"], dim) / np.float32(rope["factor"])
    return Rope(lambda lengths: frequencies)


def _dynamic(dim: int, rope: Parameters) -> Rope:
    """The base grows with a sequence beyond the trained length ("dynamic NTK"). Keys stay as they were turned."""
    trained, factor = rope["max_position_embeddings"], rope["factor"]

    def frequencies(lengths: IntArray) -> FloatArray:
        stretch = factor * np.maximum(lengths, trained) / trained - (factor - 1)
        base: FloatArray = np.asarray(rope["rope_theta"] * stretch ** (dim / (dim - 2)), np.float32)
        return _inverse_powers(base, dim)

    return Rope(frequencies)


def _llama3(dim: int, rope: Parameters) -> Rope:
    """Long wavelengths divided by ``factor``, short ones kept, those between interpolated (arXiv:2407.21783)."""
    plain = _inverse_powers(rope["rope_theta"], dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = np.float32(rope["original_max_position_embeddings"]) * plain / np.float32(2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    frequencies = ((1 - smooth) * plain / rope["factor"] + smooth * plain).astype(np.float32)
    return Rope(lambda lengths: frequencies)


def _yarn(dim: int, rope: Parameters) -> Rope:
    """Frequencies divided by ``factor`` from slow to fast along a ramp, and sharper scores (arXiv:2309.00071)."""
    trained = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or rope["max_position_embeddings"] / trained
    plain = _inverse_powers(rope["rope_theta"], dim)

    def where(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = where(rope.get("beta_fast") or 32), where(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (max(high - low, 0.001)), 0, 1)
    frequencies = (plain / factor * ramp + plain * (1 - ramp)).astype(np.float32)
    return Rope(lambda lengths: frequencies, _yarn_attention_factor(rope, factor))


def _yarn_attention_factor(rope: Parameters, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1)


def _longrope(dim: int, rope: Parameters) -> Rope:
    """A factor per frequency, one set up to the trained length and one beyond (arXiv:2402.13753)."""
    trained = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or rope["max_position_embeddings"] / trained
    for name in ("short_factor", "long_factor"):
        if len(rope[name]) != dim // 2:
            raise ValueError(f"{name} must have {dim // 2} numbers, got {len(rope[name])}")
    sets = np.array([rope["short_factor"], rope["long_factor"]], np.float32)
    both = _inverse_powers(rope["rope_theta"], dim) / sets
    scale = rope.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return Rope(lambda lengths: both[(lengths > trained).astype(int)], scale, switch=trained)


ROPES: dict[str, Callable[[int, Parameters], Rope]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}


def read_rope(config: Mapping[str, Any], defaults: Mapping[str, Any], head_dim: int) -> Rope:
    """The rotation that config.json describes in ``rope_parameters``, or in the older ``rope_theta, rope_scaling``.

    Args:
        defaults: values for parameters that the config lacks.

    Raises:
        ValueError: the kind of scaling is not known, or a parameter is missing or not of its kind.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"rope_parameters must be an object, got {given!r:.60}; correct config.json")
    keys = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "max_position_embeddings")
    outer = {key: config[key] for key in keys if config.get(key) is not None}
    rope = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0, **defaults, **outer, **given}
    # Where both places have it, the outer one counts: checkpoints that were stretched keep the trained length there.
    rope |= {key: outer[key] for key in ("original_max_position_embeddings",) if key in outer}
    rope.setdefault("original_max_position_embeddings", rope.get("max_position_embeddings"))
    kind = given.get("rope_type", given.get("type", "default"))
    kind = rope.get("aliases", {}).get(kind, kind)
    if not isinstance(kind, str) or kind not in ROPES:
        raise ValueError(f"rope_type must be one of {', '.join(sorted(ROPES))}, got {kind!r}; see decoder/rotary.py")
    try:
        dim = int(head_dim * rope["partial_rotary_factor"])
        if dim < 2 or dim % 2 or dim > head_dim or not rope["rope_theta"] > 0:
            raise ValueError(f"they turn {dim} of {head_dim} coordinates by powers of {rope['rope_theta']}")
        with np.errstate(all="ignore"):
            made = ROPES[kind](dim, rope)
            finite = np.isfinite(made.frequencies(np.array([1, 1 << 20]))).all()
        if not finite or not np.isfinite(made.factor):
            raise ValueError("a frequency is not finite")
        return made
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"rope parameters of config.json must fit type {kind}, got {error!r}; take the config.json of the model"
        ) from error
