"""The arguments of a model's methods, checked against the model before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.layers import DecoderLayer
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.weights import LayerStack

Progress = Callable[[int, int], object]
Ids = Sequence[Sequence[int] | IntArray]
#: What an encoder reads: texts, pairs of texts, or token ids.
Sources = Union[Sequence[str], Sequence[tuple[str, str]], Ids]  # noqa: UP007
#: Token ids for all sources, or for each.
PromptIds = Union[Sequence[int], IntArray, Ids]  # noqa: UP007 - an alias, evaluated by Python 3.10
#: Where transformers looks for the first decoder input, in its order.
_START_KEYS = ("decoder_start_token_id", "bos_token_id")


class Requests:
    """What a model is asked, as it takes it. Every method raises TypeError or ValueError that names the argument.

    Attributes:
        start: the decoder's first input; None for a model without an encoder, which has prompts.
    """

    def __init__(self, forward: Transformer, config: Mapping[str, Any], generation: Mapping[str, Any]) -> None:
        self._forward, self._generation = forward, generation
        self.start: int | None = None
        if forward.encoder is not None and forward.decoder is not None:
            self.start = decoder_start(generation, config, forward.vocab)

    @property
    def reads(self) -> LayerStack[Any]:
        """The stack that takes sources."""
        stack = self._forward.encoder or self._forward.decoder
        assert stack is not None
        return stack

    @property
    def writes(self) -> LayerStack[DecoderLayer]:
        """The stack that gives tokens."""
        if self._forward.decoder is None:
            raise ValueError(
                f"this needs a model that writes, got family {self._forward.family.name}, which has no decoder; "
                "use encode or classify"
            )
        return self._forward.decoder

    @property
    def encoder_reads_tokens(self) -> bool:
        return self._forward.encoder is not None and self._forward.encoder.sizes.vocab > 0

    def sequences(self, name: str, sources: Ids | FloatArray) -> list[Any]:
        sizes = self.reads.sizes
        if sizes.mels:
            return check.features(name, sources, sizes.mels, 2 * sizes.positions)
        return list(check.token_lists(name, sources, sizes.vocab, sizes.positions))

    def segments(self, sequences: list[Any], segments: Ids | None) -> list[IntArray] | None:
        """Of each token; None for a stack that makes no difference between them."""
        table = getattr(self.reads.embed, "segments", None)
        if segments is None or table is None:
            return None
        checked = check.token_lists("segments", segments, len(table), 0)
        lengths = [len(sequence) for sequence in sequences]
        if (got := [len(some) for some in checked]) != lengths:
            raise ValueError(f"segments must have the lengths of sources, {lengths}, got {got}; give each token one")
        return checked

    def prompts(self, sequences: list[IntArray], prompt_ids: PromptIds | None) -> list[IntArray]:
        """What stands in the decoder before the first new token."""
        sizes = self.writes.sizes
        if self.start is None:
            if prompt_ids is not None:
                raise ValueError("prompt_ids must be None without an encoder: the sources are the prompts")
            return sequences
        if prompt_ids is None:
            return [np.array([self.start])] * len(sequences)
        if is_one_list(prompt_ids):
            return check.token_lists("prompt_ids", [prompt_ids], sizes.vocab, sizes.positions) * len(sequences)
        prompts = check.token_lists("prompt_ids", prompt_ids, sizes.vocab, sizes.positions)
        if len(prompts) != len(sequences):
            raise ValueError(
                f"prompt_ids must be one list of token ids or one per source, got {len(prompts)} for {len(sequences)} "
                "sources"
            )
        return prompts

    def prefixes(self, embeddings: Sequence[FloatArray] | None, count: int) -> list[FloatArray] | None:
        if embeddings is None:
            return None
        if self._forward.encoder is not None:
            raise ValueError(
                "prefix_embeddings must be None for a model with an encoder, got some for family "
                f"{self._forward.family.name}; it reads its sources by cross-attention"
            )
        return check.embeddings("prefix_embeddings", embeddings, count, self.writes.sizes.width)

    def limits(self, prompts: list[IntArray], prefixes: list[FloatArray] | None, options: Options) -> list[int]:
        """The most new tokens of each sequence."""
        most = self.writes.sizes.positions
        lengths = [len(prompt) + (len(prefixes[i]) if prefixes else 0) for i, prompt in enumerate(prompts)]
        if options.asked("max_new_tokens"):
            room = most + 1 - max(lengths, default=1) if most else None
            remedy = f"the model has {most} positions" if most else "pass more"
            return [check.count("max_new_tokens", options.get("max_new_tokens"), room, remedy)] * len(prompts)
        whole = options.integer("max_length", 1)
        new = None if options.asked("max_length") else options.integer("max_new_tokens")
        limits = []
        for i, length in enumerate(lengths):
            # max_length counts the start token, and so does the limit that transformers puts on its default of 20.
            default = min(20, most - length if most else 20) if whole is None else whole - length
            wanted = default if new is None else new
            source = "max_length" if options.asked("max_length") else "max_new_tokens of the generation config"
            limits.append(
                check.count(
                    f"{source}, for sources[{i}],",
                    min(wanted, most + 1 - length) if most else wanted,
                    None,
                    "pass max_new_tokens, or shorten the source",
                )
            )
        return limits

    def heads(self, name: str, value: Sequence[tuple[int, int]] | None, asked: str) -> list[tuple[int, int]] | None:
        """Whose cross-attention is asked for; None: of all heads."""
        if self.start is None:
            raise ValueError(f"{asked} needs an encoder and a decoder, got family {self._forward.family.name}")
        sizes = self.writes.sizes
        return None if value is None else check.head_pairs(name, value, sizes.layers, sizes.heads)

    def check_room(self, i: int, before: int, new: int) -> None:
        most = self.writes.sizes.positions
        if most and before + new - 1 > most:
            raise ValueError(
                f"sources[{i}] and targets[{i}] must have at most {most} tokens together, got {before + new - 1}; "
                "shorten them"
            )


def is_one_list(prompt_ids: object) -> bool:
    """Whether it is token ids rather than lists of them."""
    if isinstance(prompt_ids, np.ndarray):
        return prompt_ids.ndim < 2
    return not isinstance(prompt_ids, Sequence) or not any(isinstance(x, Sequence | np.ndarray) for x in prompt_ids)


def batches(sequences: Sequence[IntArray], size: int, progress: Progress | None) -> Iterator[list[int]]:
    """Indices of sequences of similar length, ``size`` at a time, longest first: too little memory shows at once."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
        if progress is not None:
            progress(min(start + size, len(order)), len(order))


def decoder_start(generation: Mapping[str, Any], config: Mapping[str, Any], vocab: int) -> int:
    settings = (settings.get(key) for settings in (generation, config) for key in _START_KEYS)
    start = next((value for value in settings if value is not None), None)
    if not isinstance(start, int) or not 0 <= start < vocab:
        raise ValueError(
            f"decoder_start_token_id must be a token id below {vocab}, got {start!r}; "
            "correct generation_config.json or config.json"
        )
    return start
