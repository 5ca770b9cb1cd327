"""Where a decoder stands in each sequence of a batch: what every search, greedy or not, moves forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.core_layers import Steps
from maskattn.decoder.memory import Memory, Prefix
from maskattn.decoder.model import Transformer, pad

#: Tokens in the pages that sequences share: what one of them copies before it writes, and how long tables are.
_SHARED_PAGE = 32


class DecoderState:
    """Prompts that have been read, and the tokens appended since.

    Args:
        prompts: decoder inputs per sequence, none empty.
        limits: the most tokens that will be appended to each.
        memory, prefix: what the decoder reads besides.
        branches: whether several sequences will continue the same one, whose tokens they then share.

    Attributes:
        hidden: shape (batch, width), the state that predicts each sequence's next token.
        states: shape (batch, new, width), all states of what has been read last, in the order that the batch had then:
            of the prompts, behind a prefix's, and after ``append`` of a token.
    """

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
        self._model, self._memory, self._prefix = model, memory, prefix
        before = [0] * len(prompts) if prefix is None else prefix.lengths
        longest = max(n + len(prompt) + limit for n, prompt, limit in zip(before, prompts, limits, strict=True))
        self._cache = model.new_cache(len(prompts), longest, page_size=_SHARED_PAGE if branches else None)
        tokens, lengths = pad(prompts)
        self._steps: Steps | None = None
        self._switch = model.switch
        self._history = [prompt.tolist() for prompt in prompts] if self._switch else None
        self.hidden = self._read(tokens, lengths)

    def append(self, tokens: IntArray) -> None:
        """Move on by one token per sequence, shape (batch,)."""
        if self._history is not None:
            for history, token in zip(self._history, tokens.tolist(), strict=True):
                history.append(token)
            if (self._cache[0].lengths == self._switch).any():
                self._read_again()
                return
        self.hidden = self._step(tokens)

    def reorder(self, sequences: IntArray, *, within: bool = False) -> None:
        """Sequence ``i`` continues what was sequence ``sequences[i]``; some may be left out, and some repeated.

        Args:
            within: each continues a sequence that reads the same source as it did.
        """
        self._cache.reorder(sequences)
        self._steps = None
        if not within:
            self._memory = None if self._memory is None else self._memory.reorder(sequences)
            self._prefix = None if self._prefix is None else self._prefix.reorder(sequences)
        self.hidden = self.hidden[sequences]
        if self._history is not None:
            self._history = [self._history[i].copy() for i in sequences]

    def contrast(self, logits: FloatArray, rows: IntArray | None = None) -> FloatArray:
        """The scores by which tokens are chosen: here the model's own.

        Args:
            logits: shape (batch, vocab), of ``hidden``; or of these rows of it.
        """
        return logits

    def _step(self, tokens: IntArray) -> FloatArray:
        """Hidden states (batch, width) of one more token of each sequence."""
        if self._steps is None or not self._steps.go_on():
            self._steps = self._model.steps(self._memory, self._cache, self._prefix)
        if self._steps is None:
            hidden = self._model.step(tokens, self._memory, self._cache, self._prefix)
        else:
            hidden = self._steps(tokens)
        self.states = hidden[:, None]
        return hidden

    def _decode(self, tokens: IntArray, new_lengths: IntArray | None = None) -> FloatArray:
        """As :meth:`Transformer.decode`, of new tokens (batch, new)."""
        states = self._model.decode(tokens, self._memory, self._cache, new_lengths=new_lengths, prefix=self._prefix)
        self.states = states
        return states

    def _read(self, tokens: IntArray, lengths: IntArray) -> FloatArray:
        ragged = None if (lengths == tokens.shape[1]).all() else lengths
        hidden = self._decode(tokens, ragged)
        last: FloatArray = hidden[np.arange(len(tokens)), self._cache[0].lengths - 1]
        return last

    def _read_again(self) -> None:
        """Some sequence has grown past the length up to which its stored keys are turned as they must be."""
        assert self._history is not None
        self._cache.truncate(0)
        self.hidden = self._read(*pad([np.array(history) for history in self._history]))
