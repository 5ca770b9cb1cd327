"""Text generation with an encoder-decoder: ``load`` a checkpoint, then ask the ``Model``; and its layers."""

from maskattn.decoder.api import Model, load
from maskattn.decoder.layers import DecoderLayer, EncoderLayer, FeedForward
from maskattn.decoder.multi_head import KeyValues, LayerCache, MultiHeadAttention
from maskattn.decoder.norms import PLACEMENTS, LayerNorm, Placement
from maskattn.decoder.projection import Linear

__all__ = [
    "PLACEMENTS",
    "DecoderLayer",
    "EncoderLayer",
    "FeedForward",
    "KeyValues",
    "LayerCache",
    "LayerNorm",
    "Linear",
    "Model",
    "MultiHeadAttention",
    "Placement",
    "load",
]
