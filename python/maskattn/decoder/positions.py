"""Position encodings, by the names that families use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maskattn.decoder.arrays import FloatArray


def sinusoidal(length: int, width: int) -> FloatArray:
    """Sinusoids of geometrically growing wavelength (arXiv:1706.03762, section 3.5), in Marian's order.

    The paper alternates sine and cosine; Marian (arXiv:1804.00344) puts all sines in the first half of the vector and
    all cosines in the second, the sines having one more when ``width`` is odd.

    Returns:
        shape (length, width), float32; row ``p`` belongs to absolute position ``p``.
    """
    pair = np.arange(width) // 2
    # In float64 until the last step: a float32 angle at position 500 is wrong by more than a rounding of its sine.
    angle = np.arange(length)[:, None] / np.power(10000.0, 2 * pair / width)
    return np.concatenate([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=1).astype(np.float32)


POSITIONS: dict[str, Callable[[int, int], FloatArray]] = {"sinusoidal": sinusoidal}
