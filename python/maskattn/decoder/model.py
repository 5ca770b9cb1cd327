"""The forward pass of an encoder-decoder, driven by a ``Family``: encoder, decoder (with or without cache), head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maskattn import attention, attention_weights
from maskattn.decoder.activations import ACTIVATIONS
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.cache import Memory, SelfCache
from maskattn.decoder.norms import NORMS, PLACEMENTS
from maskattn.decoder.positions import POSITIONS
from maskattn.decoder.weights import Affine, DecoderLayer, EncoderLayer, FeedForward, Sizes, Weights
from maskattn.families import Family
from maskattn.masks import Mask


class EncoderDecoder:
    """An encoder-decoder Transformer (arXiv:1706.03762) over ``maskattn.attention``, in float32.

    Raises:
        ValueError: config.json names an activation that is not known.
    """

    def __init__(self, family: Family, sizes: Sizes, weights: Weights, config: Mapping[str, Any]) -> None:
        activation = config[family.activation]
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{family.activation} must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation!r}; "
                "add it to maskattn/decoder/activations.py"
            )
        self.sizes = sizes
        self._weights = weights
        self._activate = ACTIVATIONS[activation]
        self._normalise, self._eps = NORMS[family.norm], family.norm_eps
        self._placement = PLACEMENTS[family.norm_placement]
        self._positions = POSITIONS[family.positions](sizes.max_positions, sizes.width)
        self._scale = np.float32(family.embedding_scale(config))
        self._encoder_masks = [family.encoder_mask(config, i) for i in range(sizes.encoder_layers)]
        self._decoder_masks = [family.decoder_mask(config, i) for i in range(sizes.decoder_layers)]

    def encode(self, sources: Sequence[IntArray]) -> Memory:
        """Encode ragged sources; padding on the right is hidden by their lengths.

        Args:
            sources: one array of token ids per sequence, none empty.

        Returns:
            The cross-attention keys and values of every decoder layer.
        """
        tokens, lengths = pad(sources)
        x = self._embed(self._weights.source_embedding, tokens, 0)
        for layer, mask in zip(self._weights.encoder, self._encoder_masks, strict=True):
            x = self._encode_self(x, layer, mask, lengths)
            x = self._feed_forward(x, layer.ffn)
        return Memory(tuple(layer.cross.kv(x) for layer in self._weights.decoder), lengths)

    def decode(
        self,
        tokens: IntArray,
        memory: Memory,
        cache: SelfCache | None = None,
        seen: list[FloatArray] | None = None,
    ) -> FloatArray:
        """Hidden states of decoder inputs, the tokens shifted right.

        Args:
            tokens: shape (batch, new), the inputs that follow those in ``cache``; all inputs without a cache.
            memory: the encoded sources.
            cache: gets the keys and values of ``tokens``.
            seen: gets the cross-attention probabilities, one (batch, heads, new, source_len) per layer.

        Returns:
            shape (batch, new, width), float32.
        """
        x = self._embed(self._weights.target_embedding, tokens, cache.length if cache else 0)
        for i, (layer, mask) in enumerate(zip(self._weights.decoder, self._decoder_masks, strict=True)):
            x = self._decode_self(x, layer, mask, i, cache)
            x = self._cross(x, layer, memory.key_values[i], memory.lengths, seen)
            x = self._feed_forward(x, layer.ffn)
        if cache:
            cache.advance(tokens.shape[1])
        return x

    def logits(self, hidden: FloatArray) -> FloatArray:
        """(..., width) -> (..., target_vocab)."""
        return self._weights.head(hidden)

    def new_cache(self, batch: int) -> SelfCache:
        """An empty cache for ``batch`` sequences."""
        sizes = self.sizes
        return SelfCache(sizes.decoder_layers, batch, sizes.decoder_heads, sizes.width // sizes.decoder_heads)

    def _embed(self, table: FloatArray, tokens: IntArray, start: int) -> FloatArray:
        x: FloatArray = table[tokens] * self._scale + self._positions[start : start + tokens.shape[1]]
        return x

    def _encode_self(self, x: FloatArray, layer: EncoderLayer, mask: Mask, lengths: IntArray) -> FloatArray:
        block = layer.attention
        q, k, v = split_heads(block.qkv(self._before(x, block.norm)), 3, self.sizes.encoder_heads)
        seen = attention(q, k, v, mask=mask, kv_lengths=lengths, q_offset=0)
        return self._after(x + block.out(join_heads(seen)), block.norm)

    def _decode_self(
        self, x: FloatArray, layer: DecoderLayer, mask: Mask, i: int, cache: SelfCache | None
    ) -> FloatArray:
        block = layer.attention
        q, k, v = split_heads(block.qkv(self._before(x, block.norm)), 3, self.sizes.decoder_heads)
        if cache:
            k, v = cache.append(i, k, v)
        # The last query stands at the last key, with or without a cache, which is attention's default geometry.
        return self._after(x + block.out(join_heads(attention(q, k, v, mask=mask))), block.norm)

    def _cross(
        self,
        x: FloatArray,
        layer: DecoderLayer,
        key_values: FloatArray,
        lengths: IntArray,
        seen: list[FloatArray] | None,
    ) -> FloatArray:
        block, heads = layer.cross, self.sizes.decoder_heads
        (q,) = split_heads(block.q(self._before(x, block.norm)), 1, heads)
        k, v = split_heads(key_values, 2, heads)
        if seen is not None:
            seen.append(attention_weights(q, k, kv_lengths=lengths))
        return self._after(x + block.out(join_heads(attention(q, k, v, kv_lengths=lengths))), block.norm)

    def _feed_forward(self, x: FloatArray, ffn: FeedForward) -> FloatArray:
        inner = self._activate(ffn.up(self._before(x, ffn.norm)))
        return self._after(x + ffn.down(inner), ffn.norm)

    def _before(self, x: FloatArray, norm: Affine) -> FloatArray:
        return self._normalise(x, norm.weight, norm.bias, self._eps) if self._placement.before else x

    def _after(self, x: FloatArray, norm: Affine) -> FloatArray:
        return self._normalise(x, norm.weight, norm.bias, self._eps) if self._placement.after else x


def pad(sequences: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Ragged sequences as one (batch, longest) array and their lengths (batch,).

    The filler is token 0: whatever stands past a length is embedded, but no query that counts ever sees it.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.zeros((len(sequences), int(lengths.max())), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, lengths


def split_heads(x: FloatArray, parts: int, heads: int) -> Iterator[FloatArray]:
    """(batch, len, parts * width) -> ``parts`` views (batch, heads, len, head_dim), whose strides attention takes."""
    batch, length, _ = x.shape
    return iter(x.reshape(batch, length, parts, heads, -1).transpose(2, 0, 3, 1, 4))


def join_heads(x: FloatArray) -> FloatArray:
    """(batch, heads, len, head_dim) -> (batch, len, width)."""
    batch, heads, length, head_dim = x.shape
    joined: FloatArray = x.transpose(0, 2, 1, 3).reshape(batch, length, heads * head_dim)
    return joined
