"""Greedy search: the token with the highest score, one after another, for a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.memory import Memory, Prefix
from maskattn.decoder.model import Transformer
from maskattn.decoder.rules import NO_TOKEN, GreedyRules
from maskattn.decoder.state import DecoderState


def greedy(
    model: Transformer,
    prompts: Sequence[IntArray],
    rules: GreedyRules,
    limits: Sequence[int],
    memory: Memory | None = None,
    prefix: Prefix | None = None,
) -> list[list[int]]:
    """Generate behind all prompts at once; a finished sequence leaves the batch.

    Args:
        prompts: one array of decoder inputs per sequence, none empty; with an encoder, the start token.
        limits: the most new tokens per sequence, each at least 1.
        memory, prefix: what the decoder reads besides.

    Returns:
        New tokens per sequence, up to its end-of-sequence token, that one included, or its limit.
    """
    begin, most = max(map(len, prompts)), np.array(limits)
    # Prompts end in the same column, so that what the rules look back on does too.
    tokens = np.full((len(prompts), begin + int(most.max())), NO_TOKEN, np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[begin - len(prompt) : begin] = prompt
    ends = begin + most
    rows = np.arange(len(prompts))  # Who is still being written; row i of the state is sequence rows[i].
    is_end = np.zeros(model.vocab, np.bool_)
    is_end[list(rules.eos_token_id)] = True
    state = DecoderState(model, prompts, limits, memory, prefix)
    for now in range(begin, tokens.shape[1]):
        scores = model.logits(state.hidden)
        rules.apply(scores, tokens[rows, :now], begin=begin, last=most[rows] == now - begin + 1)
        tokens[rows, now] = scores.argmax(axis=-1)
        ended = is_end[tokens[rows, now]]
        ends[rows[ended]] = now + 1
        open_ = ~ended & (ends[rows] > now + 1)
        if not open_.all():
            rows = rows[open_]
            if not rows.size:
                break
            state.reorder(np.flatnonzero(open_))
        state.append(tokens[rows, now])
    return [row[begin:end].tolist() for row, end in zip(tokens, ends, strict=True)]
