"""Inside views: which source positions each token was predicted from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.generate import Batch, Generated
from maskattn.decoder.memory import CrossView, Memory
from maskattn.decoder.model import Transformer, pad
from maskattn.decoder.score import shift_right

#: (layer, head), both from 0.
Pair = tuple[int, int]


def cross_attention(
    model: Transformer,
    prompts: Sequence[IntArray],
    targets: Sequence[IntArray],
    memory: Memory,
    pairs: Sequence[Pair] | None = None,
) -> list[FloatArray]:
    """Cross-attention weights of the steps that predict ``targets``, in one pass over all of them.

    A row of a pass has the bits of the step that decoded it, so looking afterwards costs generation nothing. Layers
    behind the last one of ``pairs`` are not run, other heads' weights not computed.

    Args:
        prompts, targets: one array of token ids per sequence, none empty.
        memory: the encoded sources.
        pairs: whose weights; None: those of all layers and heads.

    Returns:
        One float32 array per sequence, (layers, heads, its target's length, its source's length); with ``pairs``
        (pairs, target's length, source's length), in their order. Row ``t`` belongs to token ``t`` of the target.
    """
    assert model.decoder is not None
    sizes = model.decoder.sizes
    inputs, lengths = pad(shift_right(prompts, targets))
    sources = memory.lengths.tolist()
    leading = (sizes.layers, sizes.heads) if pairs is None else (len(pairs),)
    views = [
        np.empty((*leading, len(target), source), np.float32) for target, source in zip(targets, sources, strict=True)
    ]
    if pairs is not None and not pairs:
        return views
    wanted: dict[int, list[int] | None] = {} if pairs is not None else dict.fromkeys(range(sizes.layers))
    places: dict[int, list[int]] = {}  # where in ``pairs`` each wanted layer's heads stand
    for place, (layer, head) in enumerate(pairs or ()):
        places.setdefault(layer, []).append(place)
        wanted[layer] = [*(wanted.get(layer) or ()), head]

    def take(layer: int, weights: FloatArray) -> None:
        for view, rows, end in zip(views, weights, lengths, strict=True):
            length, source = view.shape[-2:]
            view[layer if pairs is None else places[layer]] = rows[:, end - length : end, :source]

    model.decode(inputs, memory, new_lengths=lengths, view=CrossView(wanted, take))
    return views


def look_at(model: Transformer, batch: Batch, written: Sequence[Generated], pairs: Sequence[Pair] | None) -> None:
    """Give what has been written its ``cross_attention``."""
    assert batch.memory is not None
    for ids, weights in zip(
        written,
        cross_attention(model, batch.prompts, [np.array(ids) for ids in written], batch.memory, pairs),
        strict=True,
    ):
        ids.cross_attention = weights
