"""A decoder that reads ahead: what it has read may be taken back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.cache import Draft
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.memory import Memory, Prefix
from maskattn.decoder.model import Transformer, pad
from maskattn.decoder.state import DecoderState


class ReadingAhead(DecoderState):
    """A :class:`DecoderState` whose tokens are read several at a time, and kept or not afterwards."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[IntArray],
        limits: Sequence[int],
        memory: Memory | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        super().__init__(model, prompts, limits, memory, prefix)
        self._draft: Draft | None = None
        self._again: IntArray | int = 0  # tokens of each sequence that the draft reads although they are settled
        self._ahead: list[list[int]] = []

    def together(self, counts: IntArray) -> IntArray:
        """How many of the next ``counts`` tokens, each at least 1, can be read at once with the bits of single steps.

        All of them, but where angles of rotation depend on a sequence's length.
        """
        stack = self._model.decoder
        assert stack is not None
        if stack.positions.rope is None:
            return counts
        turns, lengths = stack.positions.rope.frequencies, self._cache.lengths
        while (differ := (turns(lengths + 1) != turns(lengths + counts)).any(axis=-1)).any():
            counts = counts - differ
        return counts

    def read(self, tokens: IntArray, counts: IntArray | None = None) -> FloatArray:
        """Read on; may be called several times before ``keep``.

        Args:
            tokens: shape (batch, n).
            counts: shape (batch,): how many of them are a sequence's own, the first ones. Default n.

        Returns:
            shape (batch, n, width): the states that predict what follows each token.
        """
        if self._draft is None:
            some = np.full(len(tokens), tokens.shape[1]) if counts is None else counts
            over = self._outgrows(some)
            if over:
                self._cache.truncate(0)
            self._draft = self._cache.draft().__enter__()
            self._ahead = [[] for _ in tokens]
            if over:
                return self._read_over(tokens, some)
        self._note(tokens, counts)
        return self._model.decode(tokens, self._memory, self._cache, new_lengths=counts, prefix=self._prefix)

    def keep(self, counts: IntArray) -> None:
        """Forget what has been read since the last time, but for the first ``counts`` (batch,) tokens of each."""
        assert self._draft is not None
        self._draft.commit(self._again + counts)
        self._draft, self._again = None, 0
        if self._history is not None:
            for history, ahead, count in zip(self._history, self._ahead, counts.tolist(), strict=True):
                history += ahead[:count]

    def _outgrows(self, counts: IntArray) -> bool:
        """Whether a sequence grows past the length up to which its stored keys are turned as they must be."""
        lengths = self._cache[0].lengths
        return self._switch is not None and bool(((lengths <= self._switch) & (lengths + counts > self._switch)).any())

    def _note(self, tokens: IntArray, counts: IntArray | None) -> None:
        if self._history is not None:
            for i, (ahead, own) in enumerate(zip(self._ahead, tokens.tolist(), strict=True)):
                ahead += own if counts is None else own[: counts[i]]

    def _read_over(self, tokens: IntArray, counts: IntArray) -> FloatArray:
        assert self._history is not None
        self._note(tokens, counts)
        whole = [np.array(history + ahead) for history, ahead in zip(self._history, self._ahead, strict=True)]
        padded, lengths = pad(whole)
        hidden = self._model.decode(padded, self._memory, self._cache, new_lengths=lengths, prefix=self._prefix)
        self._again = self._cache[0].lengths - counts
        columns = np.minimum(self._again[:, None] + np.arange(tokens.shape[1]), hidden.shape[1] - 1)
        last: FloatArray = hidden[np.arange(len(tokens))[:, None], columns]
        return last
