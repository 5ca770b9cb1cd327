"""What a generation config says about greedy search: where to start, when to stop, which tokens are out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray

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


#: Fills the columns before a prompt that is shorter than others of its batch.
NO_TOKEN = -1


@dataclass(frozen=True)
class GreedyRules:
    """The settings of ``transformers`` that act on greedy search, under their names there.

    ``num_beams`` and the sampling settings are not among them: the search is greedy whatever they say.
    """

    eos_token_id: tuple[int, ...]
    bad_words_ids: tuple[tuple[int, ...], ...]
    min_length: int
    min_new_tokens: int | None
    forced_bos_token_id: int | None
    forced_eos_token_id: tuple[int, ...]
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]

    @classmethod
    def read(cls, generation: Mapping[str, Any], vocab: int) -> GreedyRules:
        """From a generation config and the number of tokens that the model can write.

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
        eos, words = _ids(generation, "eos_token_id"), generation.get("bad_words_ids") or []
        if not isinstance(words, list) or not all(words):
            raise ValueError(
                f"bad_words_ids must be lists of token ids, got {words!r:.60}; correct generation_config.json"
            )
        words = [_ids({"bad_words_ids": word}, "bad_words_ids") for word in words]
        bos = _ids(generation, "forced_bos_token_id")
        rules = cls(
            eos_token_id=eos,
            # The end of the sequence can't be forbidden: transformers leaves it out as well.
            bad_words_ids=tuple(word for word in words if word not in {(token,) for token in eos}),
            min_length=integer_of(generation, "min_length") or 0,
            min_new_tokens=integer_of(generation, "min_new_tokens"),
            forced_bos_token_id=bos[0] if bos else None,
            forced_eos_token_id=_ids(generation, "forced_eos_token_id"),
            suppress_tokens=_ids(generation, "suppress_tokens"),
            begin_suppress_tokens=_ids(generation, "begin_suppress_tokens"),
        )
        rules._check(vocab)
        return rules

    def apply(self, scores: FloatArray, tokens: IntArray, *, last: BoolArray | bool, begin: int = 1) -> None:
        """Change ``scores`` in place to what may be chosen next, in the order in which transformers does it.

        Args:
            scores: shape (batch, vocab), float32.
            tokens: shape (batch, length), the tokens so far, decoder inputs first: the start token, or a prompt.
                Prompts that are shorter than others have ``NO_TOKEN`` before them, which does not count.
            last: shape (batch,): no further token will follow this one.
            begin: the column of the first new token.
        """
        length = tokens.shape[1]
        own = length - (tokens[:, :begin] == NO_TOKEN).sum(axis=1)
        for *prefix, token in self.bad_words_ids:
            if len(prefix) <= length:
                scores[(tokens[:, length - len(prefix) :] == prefix).all(axis=1), token] = -np.inf
        if self.min_new_tokens is not None:
            scores[:, list(self.eos_token_id) if length - begin < self.min_new_tokens else []] = -np.inf
        elif self.min_length:
            _set(scores, own < self.min_length, self.eos_token_id, -np.inf)
        if self.forced_bos_token_id is not None:
            _force(scores, own == 1, (self.forced_bos_token_id,))
        if self.forced_eos_token_id:
            _force(scores, np.broadcast_to(last, len(tokens)), self.forced_eos_token_id)
        if self.suppress_tokens:
            scores[:, list(self.suppress_tokens)] = -np.inf
        if self.begin_suppress_tokens:  # the first token that is not forced
            new, forced = length - begin, int(self.forced_bos_token_id is not None)
            _set(scores, new == np.where(own - new == 1, forced, 0), self.begin_suppress_tokens, -np.inf)

    def _check(self, vocab: int) -> None:
        named = {
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "forced_bos_token_id": [] if self.forced_bos_token_id is None else [self.forced_bos_token_id],
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


def _force(scores: FloatArray, rows: BoolArray, tokens: tuple[int, ...]) -> None:
    scores[rows] = -np.inf
    _set(scores, rows, tokens, 0)


def _set(scores: FloatArray, rows: BoolArray, tokens: tuple[int, ...], value: float) -> None:
    if tokens and rows.any():
        scores[np.flatnonzero(rows)[:, None], list(tokens)] = value


def _ids(generation: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The tokens under ``name``: none, one, or a list."""
    value = generation.get(name)
    ids = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise ValueError(f"{name} must be token ids, got {value!r:.60}; correct generation_config.json")
    return tuple(ids)


def integer_of(generation: Mapping[str, Any], name: str) -> int | None:
    """The integer under ``name``, or None."""
    value = generation.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"{name} must be an integer, got {value!r:.60}; correct generation_config.json")
    return value
