"""What a generation config says about greedy search: where to start, when to stop, which tokens are out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray

#: Settings that would change greedy tokens and are not implemented, with the value that switches each off.
_UNSUPPORTED = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
}


@dataclass(frozen=True)
class GreedyRules:
    """The settings of ``transformers`` that act on greedy search, under their names there.

    ``num_beams`` and the sampling settings are not among them: the search is greedy whatever they say.
    """

    decoder_start_token_id: int
    eos_token_id: tuple[int, ...]
    bad_words_ids: tuple[tuple[int, ...], ...]
    min_length: int
    forced_bos_token_id: int | None
    forced_eos_token_id: tuple[int, ...]
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]

    @classmethod
    def read(cls, generation: Mapping[str, Any], start: int, vocab: int) -> GreedyRules:
        """From a generation config and the model's first decoder input and number of target tokens.

        Raises:
            ValueError: a token id is not in the vocabulary.
            NotImplementedError: a setting is on that would change the tokens and is not implemented.
        """
        for name, off in _UNSUPPORTED.items():
            if generation.get(name) not in (None, off):
                raise NotImplementedError(
                    f"{name} must be off in the generation config, got {generation[name]!r}, which greedy search does "
                    "not implement yet; take it out of generation_config.json"
                )
        eos = _ids(generation.get("eos_token_id"))
        words = (tuple(word) for word in generation.get("bad_words_ids") or ())
        new = generation.get("min_new_tokens")
        rules = cls(
            decoder_start_token_id=start,
            eos_token_id=eos,
            # The end of the sequence can't be forbidden: transformers leaves it out as well.
            bad_words_ids=tuple(word for word in words if word not in {(token,) for token in eos}),
            min_length=(generation.get("min_length") or 0) if new is None else new + 1,
            forced_bos_token_id=generation.get("forced_bos_token_id"),
            forced_eos_token_id=_ids(generation.get("forced_eos_token_id")),
            suppress_tokens=_ids(generation.get("suppress_tokens")),
            begin_suppress_tokens=_ids(generation.get("begin_suppress_tokens")),
        )
        rules._check(vocab)
        return rules

    def apply(self, scores: FloatArray, tokens: IntArray, *, last: bool) -> None:
        """Change ``scores`` in place to what may be chosen next, in the order in which transformers does it.

        Args:
            scores: shape (batch, vocab), float32.
            tokens: shape (batch, length), the tokens so far, the decoder's start token first.
            last: no further token will follow this one.
        """
        length = tokens.shape[1]
        for *prefix, token in self.bad_words_ids:
            if len(prefix) <= length:
                scores[(tokens[:, length - len(prefix) :] == prefix).all(axis=1), token] = -np.inf
        if length < self.min_length:
            scores[:, list(self.eos_token_id)] = -np.inf
        if length == 1 and self.forced_bos_token_id is not None:
            _force(scores, (self.forced_bos_token_id,))
        if last and self.forced_eos_token_id:
            _force(scores, self.forced_eos_token_id)
        scores[:, list(self.suppress_tokens)] = -np.inf
        if length == (1 if self.forced_bos_token_id is None else 2):
            scores[:, list(self.begin_suppress_tokens)] = -np.inf

    def _check(self, vocab: int) -> None:
        named = {
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "forced_bos_token_id": _ids(self.forced_bos_token_id),
            "forced_eos_token_id": self.forced_eos_token_id,
            "eos_token_id": self.eos_token_id,
            "suppress_tokens": self.suppress_tokens,
            "begin_suppress_tokens": self.begin_suppress_tokens,
        }
        for name, ids in named.items():
            for token in ids:
                if not 0 <= token < vocab:
                    raise ValueError(
                        f"{name} must hold token ids below {vocab}, got {token}; correct generation_config.json"
                    )


def _force(scores: FloatArray, tokens: tuple[int, ...]) -> None:
    scores[:] = -np.inf
    scores[:, list(tokens)] = 0


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
