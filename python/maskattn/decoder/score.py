"""Teacher forcing: how probable a model finds given targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.memory import Memory, Prefix
from maskattn.decoder.model import Transformer, pad

#: Rows of logits held at once: with 60,000 tokens, 128 rows are 31 MB.
_ROWS = 128


def shift_right(prompts: Sequence[IntArray], targets: Sequence[IntArray]) -> list[IntArray]:
    """Decoder inputs: prompt or start token, then the target without its last token (arXiv:1706.03762, 3.1)."""
    return [np.concatenate([prompt, target[:-1]]) for prompt, target in zip(prompts, targets, strict=True)]


def log_probabilities(
    model: Transformer,
    prompts: Sequence[IntArray],
    targets: Sequence[IntArray],
    memory: Memory | None = None,
    prefix: Prefix | None = None,
) -> list[FloatArray]:
    """Log-probability of every target token given what stands before it.

    Args:
        prompts, targets: one array of token ids per sequence, none empty.
        memory, prefix: what the decoder reads besides.

    Returns:
        One array per target, float32, of its length.
    """
    inputs, lengths = pad(shift_right(prompts, targets))
    hidden = model.decode(inputs, memory, new_lengths=lengths, prefix=prefix)
    ends = lengths + (0 if prefix is None else np.array(prefix.lengths))
    counts = [len(target) for target in targets]
    places = np.arange(hidden.shape[1])
    real = (places < ends[:, None]) & (places >= (ends - counts)[:, None])
    states, wanted = hidden[real], np.concatenate(targets)
    scores = [
        log_softmax_at(model.logits(states[i : i + _ROWS]), wanted[i : i + _ROWS]) for i in range(0, len(states), _ROWS)
    ]
    return np.split(np.concatenate(scores), np.cumsum(counts)[:-1])


def log_softmax_at(logits: FloatArray, tokens: IntArray) -> FloatArray:
    """Log-probabilities of one token per row, (rows, vocab) and (rows,) -> (rows,)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen: FloatArray = np.take_along_axis(shifted, tokens[:, None], axis=-1)[:, 0]
    chosen -= np.log(np.exp(shifted).sum(axis=-1))
    return chosen
