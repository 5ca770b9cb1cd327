"""Qwen2 (arXiv:2407.10671): Llama with biases on queries, keys and values; some layers may have a sliding window."""

from dataclasses import replace

from maskattn import masks
from maskattn.families.family import Config
from maskattn.families.llama import LLAMA, STACK
from maskattn.families.mistral import windowed


def mask(config: Config, layer: int) -> masks.Mask:
    """By ``layer_types``; without it, the layers from ``max_window_layers`` on slide."""
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    if types := config.get("layer_types"):
        return windowed(window if types[layer] == "sliding_attention" else None)
    return windowed(window if layer >= config["max_window_layers"] else None)


QWEN2 = replace(
    LLAMA,
    name="qwen2",
    tokenizer="Qwen2Tokenizer",
    decoder=replace(STACK, mask=mask, biases=("self.q", "self.k", "self.v")),
    defaults={
        **LLAMA.defaults,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "max_position_embeddings": 32768,
    },
)
