"""The sequences of a batch that changes between steps, and what they read."""

from __future__ import annotations

import numpy as np

from maskattn.cache import KVCache
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer


class Running:
    """Where the decoder stands in each sequence of the batch.

    Attributes:
        cache: of all sequences.
        hidden: shape (batch, width), the state that predicts each one's next token.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self.cache = model, cache
        self._memory = None if model.encoder is None else model.new_memory_rows()
        self._read: Memory | None = None
        self.hidden: FloatArray = np.zeros((0, 0), np.float32)

    def join(self, cache: KVCache, memory: Memory | None, hidden: FloatArray) -> None:
        """One sequence more, whose ``hidden`` (1, width) predicts its next token; ``cache`` is empty then."""
        self.cache.take(cache)
        if self._memory is not None and memory is not None:
            self._memory.join(memory)
            self._read = self._memory.view()
        self.hidden = np.concatenate([self.hidden, hidden]) if len(self.hidden) else hidden

    def leave(self, stay: IntArray) -> IntArray:
        """Only the sequences ``stay``, ascending, go on. Returns their new order: the last ones fill the gaps."""
        order = np.arange(len(stay))
        gaps = np.setdiff1d(order, stay)
        order[gaps] = stay[len(stay) - len(gaps) :]
        self.cache.reorder(order)
        if self._memory is not None:
            self._memory.reorder(order)
            self._read = self._memory.view()
        self.hidden = self.hidden[order]
        return order

    def append(self, tokens: IntArray) -> None:
        """Move on by one token per sequence, shape (batch,)."""
        self.hidden = self._model.step(tokens, self._read, self.cache)
