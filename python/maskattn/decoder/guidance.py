"""Classifier-free guidance: away from what would be written without the prompt (arXiv:2306.17806, equation 7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.generate import Batch
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.requests import is_one_list
from maskattn.decoder.rules import OpenState
from maskattn.decoder.sampling import log_softmax
from maskattn.decoder.state import DecoderState


def read(options: Options, model: Transformer, limits: Sequence[int] | None) -> OpenState | None:
    """None where ``guidance_scale`` does not ask for it.

    Args:
        limits: the most new tokens of each source, if they are known.

    Raises:
        TypeError, ValueError: an option is not as GenerationOptions says, the model has an encoder, or a negative
            prompt leaves no room for new tokens.
    """
    scale = options.number("guidance_scale", "a finite number", lambda x: True)
    if scale in (None, 1):
        return None
    if model.encoder is not None or model.decoder is None:
        raise options.wrong("guidance_scale", f"None for a model with an encoder ({model.family.name})")
    value, sizes = options.get("negative_prompt_ids"), model.decoder.sizes
    prompts = None
    if value is not None:
        lists = [value] if is_one_list(value) else value
        prompts = check.token_lists("negative_prompt_ids", lists, sizes.vocab, sizes.positions)
        if limits is not None:
            _check_room(prompts, limits, sizes.positions)
    return partial(GuidedState, scale=scale, negative=prompts)


class GuidedState(DecoderState):
    """Two states: behind the prompts, and behind what stands for no prompt.

    Args:
        scale: how far from the second to the first; above 1 beyond it.
        negative: token ids that stand for no prompt, one array for all sources or one for each. None: the last token of
            the prompt.
    """

    def __init__(
        self,
        model: Transformer,
        batch: Batch,
        scale: float,
        negative: list[IntArray] | None,
        *,
        branches: bool = False,
    ) -> None:
        without = [prompt[-1:] for prompt in batch.prompts]
        if negative is not None:
            without = [negative[0 if len(negative) == 1 else number] for number in batch.numbers]
        super().__init__(model, batch.prompts, batch.limits, batch.memory, batch.prefix, branches=branches)
        self._scale, self._without = np.float32(scale), DecoderState(model, without, batch.limits, branches=branches)

    def append(self, tokens: IntArray) -> None:
        """As of any state."""
        super().append(tokens)
        self._without.append(tokens)

    def reorder(self, sequences: IntArray, *, within: bool = False) -> None:
        """As of any state."""
        super().reorder(sequences, within=within)
        self._without.reorder(sequences, within=within)

    def contrast(self, logits: FloatArray, rows: IntArray | None = None) -> FloatArray:
        """``without + scale * (with - without)``, of log-probabilities."""
        hidden = self._without.hidden if rows is None else self._without.hidden[rows]
        out = logits == -np.inf  # what a shortlist leaves out
        without = log_softmax(self._model.logits(hidden))
        with np.errstate(invalid="ignore"):
            guided = self._scale * (log_softmax(logits.copy()) - without) + without
        guided[out] = -np.inf
        scores: FloatArray = guided
        return scores


def _check_room(negative: Sequence[IntArray], limits: Sequence[int], most: int) -> None:
    if len(negative) not in (1, len(limits)):
        raise ValueError(
            "negative_prompt_ids must be one list of token ids or one per source, got "
            f"{len(negative)} for {len(limits)}"
        )
    for i, limit in enumerate(limits):
        length = len(negative[i if len(negative) > 1 else 0])
        if most and length + limit - 1 > most:
            raise ValueError(
                f"negative_prompt_ids must leave room for {limit} new tokens of sources[{i}] in {most} positions, got "
                f"{length}; pass fewer, or a lower max_new_tokens"
            )
