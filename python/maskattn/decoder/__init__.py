"""Transformers: ``load`` a checkpoint, then ask the ``Model``; and the layers of which models are made."""

from maskattn.decoder.api import Model
from maskattn.decoder.constraints import DisjunctiveConstraint, PhrasalConstraint
from maskattn.decoder.generate import Generated
from maskattn.decoder.layers import DecoderLayer, EncoderLayer, FeedForward, GatedFeedForward
from maskattn.decoder.loading import load
from maskattn.decoder.multi_head import KeyValues, MultiHeadAttention
from maskattn.decoder.norms import PLACEMENTS, LayerNorm, Placement, RMSNorm
from maskattn.decoder.options import GenerationOptions
from maskattn.decoder.projection import Linear
from maskattn.decoder.transcription.results import Segment, Transcription

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
    "Placement",
    "RMSNorm",
    "Segment",
    "Transcription",
    "load",
]
