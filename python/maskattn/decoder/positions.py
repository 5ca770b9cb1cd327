"""How positions enter a stack, by the names that families use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maskattn.bias import RelativeBias
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.rotary import Rope, Rotation, read_rope
from maskattn.decoder.settings import MOST_POSITIONS, Settings


@dataclass(frozen=True, eq=False)
class Positions:
    """What depends on positions: rows added to embeddings, a turn of queries and keys, a bias; each may be None."""

    table: FloatArray | None = None
    offset: int = 0
    rope: Rope | None = None
    bias: RelativeBias | None = None

    def rows(self, positions: IntArray) -> FloatArray | None:
        """(batch, len) -> (batch, len, width), or None where embeddings know no positions."""
        if self.table is None:
            return None
        # Padding behind a sequence that fills the table has no row; whatever it gets, nobody reads it.
        rows: FloatArray = self.table.take(positions + self.offset, axis=0, mode="clip")
        return rows

    def rotation(self, positions: IntArray, lengths: IntArray) -> Rotation | None:
        """As :meth:`Rope.rotation`, or None."""
        return None if self.rope is None else self.rope.rotation(positions, lengths)

    def rotation_of_rows(self, positions: IntArray, lengths: IntArray) -> Rotation | None:
        """The same of rows (rows,), each with the length of its sequence: (rows, rotary_dim / 2)."""
        return None if self.rope is None else self.rope.rotation_of_rows(positions, lengths)


def sinusoidal(length: int, width: int) -> FloatArray:
    """Sinusoids of geometrically growing wavelength (arXiv:1706.03762, section 3.5), in Marian's order.

    The paper alternates sine and cosine; Marian (arXiv:1804.00344) puts all sines in the first half of the vector and
    all cosines in the second, the sines having one more when ``width`` is odd.

    Returns:
        shape (length, width), float32; row ``p`` belongs to absolute position ``p``.
    """
    sines = (width + 1) // 2
    # In float64 until the last step: a float32 angle at position 500 is wrong by more than a rounding of its sine.
    angle = np.arange(length)[:, None] / np.power(10000.0, 2 * np.arange(sines) / width)
    table = np.empty((length, width), np.float32)
    np.sin(angle, out=table[:, :sines])
    np.cos(angle[:, : width - sines], out=table[:, sines:])
    return table


def sinusoidal_halves(length: int, width: int) -> FloatArray:
    """Sinusoids as in tensor2tensor and M2M-100 (arXiv:2010.11125): the wavelengths end at 10000 exactly.

    Sines in the first half, cosines in the second, and a zero behind them when ``width`` is odd. Shape as
    :func:`sinusoidal`.
    """
    half = width // 2
    # In float32, as the model was trained: at position 1000 the angles differ in the fourth digit.
    wavelengths = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angle = np.arange(length, dtype=np.float32)[:, None] * wavelengths
    table = np.zeros((length, width), np.float32)
    table[:, :half], table[:, half : 2 * half] = np.sin(angle), np.cos(angle)
    return table


class TableReader(Protocol):
    """Gives a table of the checkpoint in the shape that it must have."""

    def table(self, name: str, *shape: int) -> FloatArray: ...


def _none(settings: Settings, reader: TableReader) -> Positions:
    return Positions()


def _sinusoidal(settings: Settings, reader: TableReader) -> Positions:
    sizes, offset = settings.sizes, settings.position_offset
    return Positions(sinusoidal(_rows(settings), sizes.width), offset)


def _sinusoidal_halves(settings: Settings, reader: TableReader) -> Positions:
    sizes, offset = settings.sizes, settings.position_offset
    if sizes.width < 4:
        raise ValueError(f"the model width must be at least 4 for sinusoidal positions, got {sizes.width}")
    return Positions(sinusoidal_halves(_rows(settings), sizes.width), offset)


def _rows(settings: Settings) -> int:
    """Of a table that is computed: no file holds it, so no shape contradicts what config.json says."""
    rows = settings.sizes.positions + settings.position_offset
    if rows > MOST_POSITIONS:
        raise ValueError(f"config.json must say a number of positions up to {MOST_POSITIONS}, got {rows}")
    return rows


def _learned(settings: Settings, reader: TableReader) -> Positions:
    sizes, offset = settings.sizes, settings.position_offset
    return Positions(reader.table("positions", sizes.positions + offset, sizes.width), offset)


def _rotary(settings: Settings, reader: TableReader) -> Positions:
    return Positions(rope=read_rope(settings.config, settings.rope, settings.sizes.head_dim))


def _relative(settings: Settings, reader: TableReader) -> Positions:
    buckets = settings.integer("relative_attention_num_buckets")
    table = reader.table("relative", buckets, settings.sizes.heads)
    distance = settings.integer("relative_attention_max_distance", MOST_POSITIONS)
    return Positions(
        bias=RelativeBias(table.astype(np.float64), bidirectional=settings.side == "encoder", max_distance=distance)
    )


POSITIONS: dict[str, Callable[[Settings, TableReader], Positions]] = {
    "none": _none,
    "sinusoidal": _sinusoidal,
    "sinusoidal halves": _sinusoidal_halves,
    "learned": _learned,
    "rotary": _rotary,
    "relative": _relative,
}
