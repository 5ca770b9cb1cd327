"""A checkpoint's tensors, their shapes checked, as the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from maskattn.decoder.activations import Activation, activation
from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.layers import DecoderLayer, EncoderLayer, FeedForward
from maskattn.decoder.multi_head import MultiHeadAttention
from maskattn.decoder.norms import NORMS, PLACEMENTS, Norm
from maskattn.decoder.projection import Linear
from maskattn.families import Family


@dataclass(frozen=True)
class Sizes:
    """The numbers of config.json that fix every shape."""

    source_vocab: int
    target_vocab: int
    width: int
    max_positions: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int

    def __post_init__(self) -> None:
        for heads in ("encoder_heads", "decoder_heads"):
            if self.width % getattr(self, heads):
                raise ValueError(
                    f"{heads} must divide the model width {self.width}, got {getattr(self, heads)}; check config.json"
                )

    @classmethod
    def read(cls, family: Family, config: Mapping[str, Any]) -> Sizes:
        """Raises ValueError for a key that is missing or not a positive integer."""
        values = {}
        for field in fields(cls):
            keys = family.sizes[field.name]
            value = next((config[key] for key in keys if config.get(key) is not None), None)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"config.json must have {' or '.join(keys)} as a positive integer, got {value!r}; "
                    f"take the config.json of a {family.name} model"
                )
            values[field.name] = value
        return cls(**values)


@dataclass(frozen=True)
class Weights:
    """All weights, float32. ``head`` may be the same array as ``target_embedding``."""

    source_embedding: FloatArray
    target_embedding: FloatArray
    head: Linear
    encoder: tuple[EncoderLayer, ...]
    decoder: tuple[DecoderLayer, ...]


def read_weights(checkpoint: Checkpoint, family: Family, sizes: Sizes, config: Mapping[str, Any]) -> Weights:
    """Fetch every tensor that the family names, in the shape that ``sizes`` gives it.

    Raises:
        ValueError: a tensor is missing or mis-shaped, or config.json names an activation that is not known.
    """
    reader = _Reader(checkpoint, family, sizes, activation(family.activation, config[family.activation]))

    def tensor(name: str, *shape: int) -> FloatArray:
        names = family.tensors[name]
        if name in family.tied and checkpoint.find(names) is None:
            source, key = family.tied[name]
            names = family.tensors[source] if config[key] else names
        return checkpoint.tensor(names, shape)

    return Weights(
        source_embedding=tensor("encoder.embed", sizes.source_vocab, sizes.width),
        target_embedding=tensor("decoder.embed", sizes.target_vocab, sizes.width),
        head=Linear(
            tensor("head", sizes.target_vocab, sizes.width), tensor("head.bias", 1, sizes.target_vocab).reshape(-1)
        ),
        encoder=tuple(reader.encoder_layer(i) for i in range(sizes.encoder_layers)),
        decoder=tuple(reader.decoder_layer(i) for i in range(sizes.decoder_layers)),
    )


@dataclass(frozen=True)
class _Reader:
    checkpoint: Checkpoint
    family: Family
    sizes: Sizes
    activation: Activation

    def encoder_layer(self, layer: int) -> EncoderLayer:
        return EncoderLayer(
            self.attention("encoder", layer, "self", self.sizes.encoder_heads),
            self.norm("encoder", layer, "self.norm"),
            self.feed_forward("encoder", layer, self.sizes.encoder_ffn),
            self.norm("encoder", layer, "ffn.norm"),
            PLACEMENTS[self.family.norm_placement],
        )

    def decoder_layer(self, layer: int) -> DecoderLayer:
        return DecoderLayer(
            self.attention("decoder", layer, "self", self.sizes.decoder_heads),
            self.norm("decoder", layer, "self.norm"),
            self.attention("decoder", layer, "cross", self.sizes.decoder_heads),
            self.norm("decoder", layer, "cross.norm"),
            self.feed_forward("decoder", layer, self.sizes.decoder_ffn),
            self.norm("decoder", layer, "ffn.norm"),
            PLACEMENTS[self.family.norm_placement],
        )

    def attention(self, side: str, layer: int, kind: str, heads: int) -> MultiHeadAttention:
        width = self.sizes.width
        q, k, v, out = (self.linear(side, layer, f"{kind}.{part}", width, width) for part in ("q", "k", "v", "out"))
        return MultiHeadAttention(q, k, v, out, heads)

    def feed_forward(self, side: str, layer: int, inner: int) -> FeedForward:
        width = self.sizes.width
        return FeedForward(
            self.linear(side, layer, "ffn.up", inner, width),
            self.linear(side, layer, "ffn.down", width, inner),
            self.activation,
        )

    def norm(self, side: str, layer: int, module: str) -> Norm:
        return NORMS[self.family.norm](*self.pair(side, layer, module, self.sizes.width), self.family.norm_eps)

    def linear(self, side: str, layer: int, module: str, *shape: int) -> Linear:
        return Linear(*self.pair(side, layer, module, *shape))

    def pair(self, side: str, layer: int, module: str, *shape: int) -> tuple[FloatArray, FloatArray]:
        """``.weight`` of this shape, and ``.bias``, one per row of it."""
        name = self.family.modules[module].format(side=side, layer=layer)
        weight = self.checkpoint.tensor([f"{name}.weight"], shape)
        return weight, self.checkpoint.tensor([f"{name}.bias"], shape[:1])
