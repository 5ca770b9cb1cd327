"""What the decoder knows at its start token, when it has heard a window and written nothing: language, silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer, pad
from maskattn.decoder.sampling import softmax


def scores_at_start(model: Transformer, start: int, before: Sequence[Sequence[int]], memory: Memory) -> FloatArray:
    """Scores (batch, vocab) of what follows the start token, which stands behind the tokens of ``before``."""
    inputs, lengths = pad([np.array([*context, start]) for context in before])
    hidden = model.decode(inputs, memory, new_lengths=lengths)
    return model.logits(hidden[np.arange(len(inputs)), lengths - 1])


def language_probs(scores: FloatArray, lang_to_id: Mapping[str, int]) -> dict[str, float]:
    """Scores (vocab,) as probabilities of languages, which are among themselves; the most probable first."""
    likely = softmax(scores[None, list(lang_to_id.values())])[0].tolist()
    return dict(sorted(zip(lang_to_id, likely, strict=True), key=lambda pair: -pair[1]))


def silence_probs(scores: FloatArray, no_speech: int | None) -> list[float | None]:
    """Of each row of scores (batch, vocab); None, if the model has no token for silence."""
    return [None] * len(scores) if no_speech is None else list(softmax(scores)[:, no_speech].tolist())
