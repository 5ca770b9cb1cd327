"""Mistral (arXiv:2310.06825): Llama whose layers may see a sliding window only."""

from dataclasses import replace

from maskattn import masks
from maskattn.families.family import FILE, Config
from maskattn.families.llama import LLAMA, STACK


def windowed(window: int | None) -> masks.Mask:
    """A window of so many keys, the query's own included, as in transformers; None: all keys before."""
    return masks.Causal() if window is None else masks.Causal() & masks.SlidingWindow(left=window - 1)


def mask(config: Config, layer: int) -> masks.Mask:
    return windowed(config.get("sliding_window"))


MISTRAL = replace(
    LLAMA,
    name="mistral",
    tokenizer=FILE,
    decoder=replace(STACK, mask=mask, biases=()),
    defaults={**LLAMA.defaults, "sliding_window": 4096, "max_position_embeddings": 131072},
)
