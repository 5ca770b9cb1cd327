"""Ours, and what only ours is asked: what a token reads, and how much of its time is spent outside the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import maskattn
from bench.generation import core_time, shapes
from maskattn.linear import PackedWeight

REPEATS = 3  # times behind the share outside the core


class Side:
    def __init__(self, path: Path, dtype: str, threads: int, device: str | None = None) -> None:
        maskattn.set_num_threads(threads)
        self.model = maskattn.load(path, dtype=dtype, device=device)
        self.options: Any = {"prompt_ids": list(shapes.SPOKEN)} if shapes.hears(self.model.config) else {}

    def write(self, sources: Any, tokens: int, beams: int) -> list[list[int]]:
        return self.model.generate_ids(sources, max_new_tokens=tokens, num_beams=beams, **self.options)

    def logits(self, sources: Any, targets: Any) -> Any:
        forward = self.model._forward
        if shapes.has_encoder(self.model.config):
            begin = self.options.get("prompt_ids", [self.model.config["decoder_start_token_id"]])
            read = np.concatenate([np.tile(begin, (len(targets), 1)), targets[:, :-1]], axis=1)
            memory = forward.encode(sources if shapes.hears(self.model.config) else [np.array(ids) for ids in sources])
        else:
            read, memory = np.concatenate([np.array(sources), targets[:, :-1]], axis=1), None
        return forward.logits(forward.decode(read, memory)[:, -targets.shape[1] :])

    def bytes_of_a_step(self, lengths: list[int], tokens: int, beams: int) -> int:
        """What a step halfway reads at least once: the matrices that it multiplies with, keys and values, as stored.

        Beams share what their source or prompt left behind.
        """
        forward = self.model._forward
        stack, encoder = forward.decoder, forward.encoder
        assert stack is not None
        sizes = stack.sizes
        if shapes.hears(self.model.config):
            lengths = [encoder.sizes.positions] * len(lengths)
        cache = forward.new_cache(1, 1)[0].dtype.itemsize
        written = len(lengths) * beams * (tokens // 2)
        pair = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim
        read = pair * (written * cache + sum(lengths) * (cache if encoder is None else self.memory_itemsize()))
        return sum(weight.nbytes for weight in matrices(forward)) + read

    def bytes_of_the_weights(self) -> float:
        """Of all parameters, as the matrix of the vocabulary is stored: with scales, where a dtype has them."""
        weight = self.model._forward.head.map.weight
        return self.model.parameters * weight.nbytes / (weight.shape[0] * weight.shape[1])

    def memory_itemsize(self) -> int:
        forward = self.model._forward
        source: Any = np.zeros((1, 80, 3000), np.float32) if shapes.hears(self.model.config) else [np.array([5])]
        return forward.encode(source).key_values[0][0].dtype.itemsize

    def share_outside_the_core(self, sources: Any, tokens: int, beams: int) -> float:
        """Of a step's time, as (all tokens - one token): that in which no function of the core runs."""
        whole, inside = np.subtract(*(self._timed(sources, count, beams) for count in (tokens, 1)))
        return 1 - float(inside / whole)

    def _timed(self, sources: Any, tokens: int, beams: int) -> Any:
        found = []
        for _ in range(REPEATS):
            with core_time.watched() as clock:
                self.write(sources, tokens, beams)
            found.append((clock.whole, clock.inside))
        return min(found)


def matrices(forward: Any) -> list[PackedWeight]:
    """Of all layers of the decoder that a token passes, and of the vocabulary."""
    maps = [forward.head.map]
    for layer in forward.decoder.layers:
        maps += [layer.attention._qkv, layer.attention.out, layer.feed_forward.down]
        maps.append(getattr(layer.feed_forward, "_gate_up", None) or layer.feed_forward.up)
        maps += [] if layer.cross is None else [layer.cross.q, layer.cross.out]
    weights = [linear.weight for linear in maps]
    assert all(isinstance(weight, PackedWeight) for weight in weights)
    return weights
