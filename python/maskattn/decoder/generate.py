"""Greedy search: the token with the highest score, one after another, for a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.model import EncoderDecoder
from maskattn.decoder.rules import GreedyRules


def greedy(
    model: EncoderDecoder, sources: Sequence[IntArray], rules: GreedyRules, max_new_tokens: int
) -> list[list[int]]:
    """Generate for all sources at once; a finished sequence leaves the batch.

    Args:
        sources: one array of token ids per sequence, none empty.
        max_new_tokens: at least 1.

    Returns:
        New tokens per source, up to its end-of-sequence token, that one included, or ``max_new_tokens``.
    """
    batch = len(sources)
    memory, cache = model.encode(sources), model.new_cache(batch)
    tokens = np.full((batch, 1 + max_new_tokens), rules.decoder_start_token_id, np.int64)
    ends = np.full(batch, 1 + max_new_tokens)
    rows = np.arange(batch)  # Who is still being written; row i of memory and cache is sequence rows[i].
    for length in range(1, 1 + max_new_tokens):
        hidden = model.decode(tokens[rows, length - 1 : length], memory, cache)
        scores = model.logits(hidden[:, -1])
        rules.apply(scores, tokens[rows, :length], last=length == max_new_tokens)
        tokens[rows, length] = scores.argmax(axis=-1)
        open_ = ~np.isin(tokens[rows, length], rules.eos_token_id)
        if not open_.all():
            ends[rows[~open_]] = length + 1
            rows, memory = rows[open_], memory.keep(open_)
            cache.keep(open_)
            if not rows.size:
                break
    return [row[1:end].tolist() for row, end in zip(tokens, ends, strict=True)]
