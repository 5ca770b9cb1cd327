"""The weights of a model in the form the forward pass wants: sizes checked, projections of one input fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.families import Family
from maskattn.linear import linear


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
class Affine:
    """Weight (out, in) and bias (out,) of a projection; or both (width,), of a norm."""

    weight: FloatArray
    bias: FloatArray

    def __call__(self, x: FloatArray) -> FloatArray:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class SelfAttention:
    """``qkv`` projects to queries, keys and values side by side, in one product."""

    qkv: Affine
    out: Affine
    norm: Affine


@dataclass(frozen=True)
class CrossAttention:
    """Queries come from the tokens, ``kv`` (keys and values side by side) from the encoder's output."""

    q: Affine
    kv: Affine
    out: Affine
    norm: Affine


@dataclass(frozen=True)
class FeedForward:
    up: Affine
    down: Affine
    norm: Affine


@dataclass(frozen=True)
class EncoderLayer:
    attention: SelfAttention
    ffn: FeedForward


@dataclass(frozen=True)
class DecoderLayer:
    attention: SelfAttention
    cross: CrossAttention
    ffn: FeedForward


@dataclass(frozen=True)
class Weights:
    """All weights, float32. ``head`` may be the same array as ``target_embedding``."""

    source_embedding: FloatArray
    target_embedding: FloatArray
    head: Affine
    encoder: tuple[EncoderLayer, ...]
    decoder: tuple[DecoderLayer, ...]


def read_weights(checkpoint: Checkpoint, family: Family, sizes: Sizes, config: Mapping[str, Any]) -> Weights:
    """Fetch every tensor that the family names, in the shape that ``sizes`` gives it.

    Raises:
        ValueError: a tensor is missing or mis-shaped.
    """
    reader = _Reader(checkpoint, family, sizes.width)

    def tensor(name: str, *shape: int) -> FloatArray:
        names = family.tensors[name]
        if name in family.tied and checkpoint.find(names) is None:
            source, key = family.tied[name]
            names = family.tensors[source] if config[key] else names
        return checkpoint.tensor(names, shape)

    return Weights(
        source_embedding=tensor("encoder.embed", sizes.source_vocab, sizes.width),
        target_embedding=tensor("decoder.embed", sizes.target_vocab, sizes.width),
        head=Affine(
            tensor("head", sizes.target_vocab, sizes.width), tensor("head.bias", 1, sizes.target_vocab).reshape(-1)
        ),
        encoder=tuple(
            EncoderLayer(reader.self_attention("encoder", i), reader.feed_forward("encoder", i, sizes.encoder_ffn))
            for i in range(sizes.encoder_layers)
        ),
        decoder=tuple(
            DecoderLayer(
                reader.self_attention("decoder", i),
                reader.cross_attention("decoder", i),
                reader.feed_forward("decoder", i, sizes.decoder_ffn),
            )
            for i in range(sizes.decoder_layers)
        ),
    )


@dataclass(frozen=True)
class _Reader:
    checkpoint: Checkpoint
    family: Family
    width: int

    def affine(self, module: str, side: str, layer: int, *shape: int) -> Affine:
        name = self.family.modules[module].format(side=side, layer=layer)
        return Affine(
            self.checkpoint.tensor([f"{name}.weight"], shape), self.checkpoint.tensor([f"{name}.bias"], shape[:1])
        )

    def square(self, modules: list[str], side: str, layer: int) -> Affine:
        """Width-to-width projections of the same input, stacked into one."""
        parts = [self.affine(module, side, layer, self.width, self.width) for module in modules]
        if len(parts) == 1:
            return parts[0]
        return Affine(np.concatenate([p.weight for p in parts]), np.concatenate([p.bias for p in parts]))

    def self_attention(self, side: str, layer: int) -> SelfAttention:
        return SelfAttention(
            qkv=self.square(["self.q", "self.k", "self.v"], side, layer),
            out=self.square(["self.out"], side, layer),
            norm=self.affine("self.norm", side, layer, self.width),
        )

    def cross_attention(self, side: str, layer: int) -> CrossAttention:
        return CrossAttention(
            q=self.square(["cross.q"], side, layer),
            kv=self.square(["cross.k", "cross.v"], side, layer),
            out=self.square(["cross.out"], side, layer),
            norm=self.affine("cross.norm", side, layer, self.width),
        )

    def feed_forward(self, side: str, layer: int, inner: int) -> FeedForward:
        return FeedForward(
            up=self.affine("ffn.up", side, layer, inner, self.width),
            down=self.affine("ffn.down", side, layer, self.width, inner),
            norm=self.affine("ffn.norm", side, layer, self.width),
        )
