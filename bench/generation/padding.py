"""Ragged sources as libraries take them."""

from __future__ import annotations

from typing import Any

import numpy as np


def pad(sources: Any, *, on_the_left: bool) -> tuple[Any, Any]:
    """Ids (batch, longest) and which of them count, both int64."""
    longest = max(map(len, sources))
    ids, mask = (np.zeros((len(sources), longest), np.int64) for _ in range(2))
    for row, seen, source in zip(ids, mask, sources, strict=True):
        place = slice(longest - len(source), None) if on_the_left else slice(len(source))
        row[place], seen[place] = source, 1
    return ids, mask
