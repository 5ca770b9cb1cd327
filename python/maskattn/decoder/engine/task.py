"""What an engine works on: a request that is written, and one that is being read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn.cache import KVCache
from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.engine.request import Request
from maskattn.decoder.generate import Writer, Written
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.stream import Tokens


@dataclass
class Task:
    """A request and what is to be done for it.

    Attributes:
        ids: what the decoder has read or is to read: the prompt, and the tokens written since.
        most: how many of them there may become in the cache.
        source: what an encoder reads; None without one.
        source_len: positions of the encoder's output, which are kept as long as the task runs; 0 without one.
    """

    request: Request[Any, Any]
    ids: list[int]
    most: int
    source: Any
    source_len: int
    writer: Writer

    def tell(self, written: Written) -> None:
        tokens = Tokens(written.tokens.tolist())
        tokens.finished = not written.open[0]
        tokens.log_probabilities = written.log_probabilities
        self.ids += tokens
        self.request.give(tokens)


@dataclass
class Reading:
    """A task that is being read, a chunk at a time."""

    task: Task
    cache: KVCache
    memory: Memory | None

    @property
    def at(self) -> int:
        return int(self.cache[0].lengths[0])

    @property
    def memory_len(self) -> int:
        return 0 if self.memory is None else int(self.memory.lengths[0])

    def advance(self, model: Transformer, chunk: int | None) -> FloatArray | None:
        """Read on; the state (1, width) behind the last token, once that has been read."""
        ids = np.array(self.task.ids)
        end = len(ids) if chunk is None else min(self.at + chunk, len(ids))
        hidden = model.decode(ids[None, self.at : end], self.memory, self.cache)
        return hidden[:, -1] if end == len(ids) else None
