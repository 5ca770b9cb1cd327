"""Search without beams: one token after another for a ragged batch, the most probable one or a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.memory import Memory, Prefix
from maskattn.decoder.model import Transformer
from maskattn.decoder.processors import NO_TOKEN, Step
from maskattn.decoder.rules import Rules
from maskattn.decoder.sampling import draw
from maskattn.decoder.score import log_softmax_at
from maskattn.decoder.state import DecoderState


class Speculated(NamedTuple):
    """What became of drafts: passes through the model, the prompt's among them; tokens drafted, and accepted."""

    passes: int
    drafted: int
    accepted: int


class Generated(list[int]):
    """New token ids, and what went with them where it was asked for.

    Attributes:
        log_probabilities: shape (len(self),), float32: of each token under the model's own scores, before any option
            has changed them; as ``score_ids`` gives them. Or None.
        cross_attention: from each token to the source: (layers, heads, len(self), source_len), or (pairs, len(self),
            source_len) if pairs were asked for; float32. Or None.
        speculated: under ``assistant_model`` or ``prompt_lookup_num_tokens``, what became of drafts. Or None.
    """

    log_probabilities: FloatArray | None = None
    cross_attention: FloatArray | None = None
    speculated: Speculated | None = None


@dataclass(frozen=True)
class Batch:
    """Sequences that are written together.

    Attributes:
        prompts: one array of decoder inputs per sequence, none empty; with an encoder, the start token.
        limits: the most new tokens per sequence, each at least 1.
        numbers: which sequences of the call they are.
        memory, prefix: what the decoder reads besides.
        sources: the token ids that an encoder has read, if it has.
    """

    prompts: Sequence[IntArray]
    limits: Sequence[int]
    numbers: Sequence[int]
    memory: Memory | None = None
    prefix: Prefix | None = None
    sources: Sequence[IntArray] | None = None


def generate(model: Transformer, batch: Batch, rules: Rules, *, log_probabilities: bool = False) -> list[Generated]:
    """Write behind all prompts at once; a finished sequence leaves the batch.

    Args:
        log_probabilities: whether to keep them; they cost a pass over the scores.

    Returns:
        New tokens per sequence, up to what ended it, that one included, or its limit.
    """
    begin, most = max(map(len, batch.prompts)), np.array(batch.limits)
    # Prompts end in the same column, so that what the rules look back on does too.
    tokens = np.full((len(most), begin + int(most.max())), NO_TOKEN, np.int64)
    for row, prompt in zip(tokens, batch.prompts, strict=True):
        row[begin - len(prompt) : begin] = prompt
    likely = np.zeros(tokens.shape if log_probabilities else (0, 0), np.float32)
    ends = begin + most
    rows = np.arange(len(most))  # Who is still being written; row i of the state is sequence rows[i].
    is_end = np.zeros(model.vocab, np.bool_)
    is_end[list(rules.eos_token_id)] = True
    streams = rules.streams(batch.numbers)
    state = DecoderState(model, batch.prompts, batch.limits, batch.memory, batch.prefix)
    for now in range(begin, tokens.shape[1]):
        scores = model.logits(state.hidden)
        raw = scores.copy() if log_probabilities and rules.processors else scores
        if rules.processors:
            scores = rules.process(_step(batch, tokens, begin, now, rows), scores)
            check_open(scores, rules.sample, batch, rows)
        chosen = draw(scores, [streams[i] for i in rows]) if rules.sample else scores.argmax(axis=-1)
        tokens[rows, now] = chosen
        if log_probabilities:
            likely[rows, now] = log_softmax_at(raw, chosen)
        ended = is_end[chosen]
        if rules.stop is not None or rules.criteria:
            ended = ended | rules.stopped(_step(batch, tokens, begin, now + 1, rows), scores)
        ends[rows[ended]] = now + 1
        open_ = ~ended & (ends[rows] > now + 1)
        if not open_.all():
            rows = rows[open_]
            if not rows.size:
                break
            state.reorder(np.flatnonzero(open_))
        state.append(tokens[rows, now])
    made = [Generated(row[begin:end].tolist()) for row, end in zip(tokens, ends, strict=True)]
    if log_probabilities:
        for i, ids in enumerate(made):
            ids.log_probabilities = likely[i, begin : ends[i]].copy()
    return made


def _step(batch: Batch, tokens: IntArray, begin: int, end: int, rows: IntArray) -> Step:
    last = np.array(batch.limits)[rows] == end - begin + 1
    sources = None if batch.sources is None else [batch.sources[i] for i in rows]
    return Step(tokens[rows, :end], begin, last, np.array(batch.numbers)[rows], sources)


def check_open(scores: FloatArray, drawing: bool, batch: Batch, rows: IntArray) -> None:
    """Raises ValueError where a row of (rows, vocab) has no token left to take, or to draw."""
    best = scores.max(axis=-1)
    for row in np.flatnonzero(~(np.isfinite(best) if drawing else best > -np.inf)):
        raise ValueError(
            f"options must leave each sequence a token with a finite score, got {best[row]} as the highest for "
            f"sources[{batch.numbers[rows[row]]}]; forbid less, or look at your logits_processor"
        )
