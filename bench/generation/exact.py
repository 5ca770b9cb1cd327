"""Arithmetic of comparisons, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np


def log_softmax_at(logits: Any, targets: Any) -> Any:
    """Log-probabilities of ``targets`` (..., positions) under ``logits`` (..., positions, vocab)."""
    wide = np.asarray(logits, np.float64)
    most = wide.max(axis=-1, keepdims=True)
    total = np.log(np.exp(wide - most).sum(axis=-1)) + most[..., 0]
    return np.take_along_axis(wide, targets[..., None], axis=-1)[..., 0] - total


def relative_error(got: Any, want: Any) -> float:
    """Norm of the difference over the norm of what is wanted."""
    want = np.asarray(want, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))
