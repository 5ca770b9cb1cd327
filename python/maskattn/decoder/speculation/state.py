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
        *,
        branches: bool = False,
    ) -> None:
        super().__init__(model, prompts, limits, memory, prefix, branches=branches)
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

    def read(
        self,
        tokens: IntArray,
        counts: IntArray | None = None,
        branches: IntArray | None = None,
        owners: IntArray | None = None,
    ) -> FloatArray:
        """Read on; may be called several times before ``keep``, but once where there are branches.

        Args:
            tokens: shape (batch, n).
            counts: shape (batch,): how many of them are a sequence's own, the first ones. Default n.
            branches: shape (batch,): in how many ways each sequence goes on. Tokens, counts and what is returned are
                then of the branches, those of a sequence side by side.
            owners: with branches, shape (all branches, n): of those that begin alike, the one that has the state.

        Returns:
            shape (batch, n, width): the states that predict what follows each token.
        """
        memory, prefix = self._memory, self._prefix
        if self._draft is None:
            some = np.full(len(tokens), tokens.shape[1]) if counts is None else counts
            over = branches is None and self.outgrows(some)
            if over:
                self._cache.truncate(0)
            self._draft = self._cache.draft(branches).__enter__()
            self._ahead = [[] for _ in tokens]
            if over:
                return self._read_over(tokens, some)
        if branches is not None:
            of_sequences = np.arange(len(branches)).repeat(branches)
            memory = None if memory is None else memory.reorder(of_sequences)
            prefix = None if prefix is None else prefix.reorder(of_sequences)
        self._note(tokens, counts)
        return self._model.decode(tokens, memory, self._cache, new_lengths=counts, prefix=prefix, owners=owners)

    def keep(self, counts: IntArray, rows: IntArray | None = None, chosen: IntArray | int = 0) -> None:
        """Forget what has been read since the last time, but for the first ``counts`` (batch,) tokens of each.

        Args:
            rows: where there were branches, shape (batch,): the ones that are kept, among all of them.
            chosen: the same, among those of their sequence.
        """
        assert self._draft is not None
        self._draft.commit(self._again + counts, chosen)
        self._draft, self._again = None, 0
        if self._history is not None:
            ahead = self._ahead if rows is None else [self._ahead[row] for row in rows]
            for history, new, count in zip(self._history, ahead, counts.tolist(), strict=True):
                history += new[:count]

    def outgrows(self, counts: IntArray) -> bool:
        """Whether a sequence grows past the length up to which its stored keys are turned as they must be.

        Its tokens are then read anew, in one way only.
        """
        lengths = self._cache[0].lengths
        if self._switch is None or not (lengths <= self._switch).any():
            return False
        return bool(((lengths <= self._switch) & (lengths + counts > self._switch)).any())

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
