"""Teacher forcing: how probable a model finds given targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.model import EncoderDecoder, pad

#: Rows of logits held at once: with 60,000 tokens, 128 rows are 31 MB.
_ROWS = 128


def shift_right(targets: Sequence[IntArray], start: int) -> list[IntArray]:
    """Decoder inputs: the start token, then each target without its last token (arXiv:1706.03762, section 3.1)."""
    return [np.concatenate([[start], target[:-1]]) for target in targets]


def log_probabilities(
    model: EncoderDecoder, sources: Sequence[IntArray], targets: Sequence[IntArray], start: int
) -> list[FloatArray]:
    """Log-probability of every target token given its source and the target tokens before it.

    Args:
        sources, targets: one array of token ids per sequence, none empty.
        start: the decoder's first input.

    Returns:
        One array per target, float32, of its length.
    """
    inputs, lengths = pad(shift_right(targets, start))
    hidden = model.decode(inputs, model.encode(sources))
    real = np.arange(inputs.shape[1]) < lengths[:, None]
    states, wanted = hidden[real], np.concatenate(targets)
    scores = [
        _log_softmax_at(model.logits(states[i : i + _ROWS]), wanted[i : i + _ROWS])
        for i in range(0, len(states), _ROWS)
    ]
    return np.split(np.concatenate(scores), np.cumsum(lengths)[:-1])


def _log_softmax_at(logits: FloatArray, tokens: IntArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen: FloatArray = np.take_along_axis(shifted, tokens[:, None], axis=-1)[:, 0]
    chosen -= np.log(np.exp(shifted).sum(axis=-1))
    return chosen
