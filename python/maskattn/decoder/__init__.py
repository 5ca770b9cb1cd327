"""Transformers: ``load`` a checkpoint, then ask the ``Model``; and the layers of which models are made."""

from maskattn.decoder.api import Model
from maskattn.decoder.converting import convert
from maskattn.decoder.generate import Generated
from maskattn.decoder.layers import DecoderLayer, EncoderLayer, FeedForward, GatedFeedForward
from maskattn.decoder.loading import load
from maskattn.decoder.multi_head import KeyValues, MultiHeadAttention
from maskattn.decoder.norms import PLACEMENTS, LayerNorm, Placement, RMSNorm
from maskattn.decoder.options import GenerationOptions
from maskattn.decoder.phrases import DisjunctiveConstraint, PhrasalConstraint
from maskattn.decoder.projection import Linear
from maskattn.decoder.stream import Piece, Stream, Tokens
from maskattn.decoder.transcription.results import Segment, Transcription, Word

__all__ = [
    "PLACEMENTS",
    "DecoderLayer",
    "DisjunctiveConstraint",
    "EncoderLayer",
    "FeedForward",
    "GatedFeedForward",
    "Generated",
    "GenerationOptions",
    "KeyValues",
    "LayerNorm",
    "Linear",
    "Model",
    "MultiHeadAttention",
    "PhrasalConstraint",
    "Piece",
    "Placement",
    "RMSNorm",
    "Segment",
    "Stream",
    "Tokens",
    "Transcription",
    "Word",
    "convert",
    "load",
]
