from __future__ import annotations

from maskattn.masks.base import Mask
from maskattn.masks.causal import Causal
from maskattn.masks.conventions.arrays import both
from maskattn.masks.parameters import count
from maskattn.masks.sliding_window import SlidingWindow


def from_flash_attn(causal: bool = False, window_size: tuple[int | None, int | None] = (-1, -1)) -> Mask:
    """window_size counts the keys besides the query's own position, -1 is unbounded; the last query is at the last key.

    The mask arguments of flash-attn 2.1 and later, whose alignment ("bottom-right") is the default here; so no lengths
    are needed. ``causal`` and a window hold together. Its ``cache_seqlens`` are ``kv_lengths`` of the call.
    """
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size must be a pair (left, right), got {window_size!r}; pass (-1, -1) for no window")
    left, right = (bound(f"window_size[{i}]", side) for i, side in enumerate(window_size))
    terms: list[Mask] = [Causal()] if causal else []
    if left is not None or right is not None:
        terms.append(SlidingWindow(left, right))
    return both(terms)


def bound(name: str, value: int | None) -> int | None:
    """A window size in which -1 (or None) is unbounded."""
    if value is None or value == -1:
        return None
    return count(name, value, also="(-1 is unbounded)")
