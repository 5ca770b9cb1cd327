"""How a window is cut into segments, and where the next one begins (arXiv:2212.04356, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Frames of features from one timestamp to the next: the encoder has a position for two frames.
STRIDE = 2


@dataclass(frozen=True)
class Cut:
    """Tokens between two times, counted in timestamps from the beginning of the window."""

    start: int
    end: int
    tokens: tuple[int, ...]


def cut(tokens: Sequence[int], first: int, frames: int) -> tuple[list[Cut], int]:
    """The segments of a window, as ``transformers`` cuts them.

    Two timestamps side by side end a segment and begin the next. What follows the last such pair is cut off in the
    middle of what is said, so the next window begins there and hears it whole.

    Args:
        tokens: written for the window, without prompt and end token.
        first: id of the timestamp 0.
        frames: how much of the window is recording.

    Returns:
        The segments, and how many frames later the next window begins, at least 1.
    """
    is_time = [token >= first for token in tokens]
    pairs = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    if not pairs:
        times = [token - first for token in tokens if token >= first]
        return [Cut(0, times[-1] if times and times[-1] else frames // STRIDE, tuple(tokens))], frames
    # A single timestamp at the end: nothing is said behind it. Two: the last segment keeps both, to tell one from two.
    ends_at_time = is_time[-2:] == [False, True]
    ends = [*pairs, len(tokens)] if ends_at_time else [*pairs[:-1], pairs[-1] + 1]
    cuts = []
    for start, end in zip([0, *ends], ends, strict=False):
        closing = end - 2 if end == ends[-1] and not ends_at_time else end - 1
        cuts.append(Cut(max(0, tokens[start] - first), tokens[closing] - first, tuple(tokens[start:end])))
    return cuts, frames if ends_at_time else max(1, STRIDE * (tokens[ends[-1] - 2] - first))
