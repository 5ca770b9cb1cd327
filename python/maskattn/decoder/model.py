"""The forward pass of an encoder-decoder, driven by a ``Family``: encoder, decoder (with or without cache), head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.cache import Memory, SelfCache
from maskattn.decoder.positions import POSITIONS
from maskattn.decoder.weights import Sizes, Weights
from maskattn.families import Family


class EncoderDecoder:
    """An encoder-decoder Transformer (arXiv:1706.03762) over ``maskattn.attention``, in float32."""

    def __init__(self, family: Family, sizes: Sizes, weights: Weights, config: Mapping[str, Any]) -> None:
        self.sizes = sizes
        self._weights = weights
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
            x = layer(x, mask=mask, kv_lengths=lengths)
        return Memory(tuple(layer.cross.project(x) for layer in self._weights.decoder), lengths)

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
        x = self._embed(self._weights.target_embedding, tokens, 0 if cache is None else cache.length)
        for i, (layer, mask) in enumerate(zip(self._weights.decoder, self._decoder_masks, strict=True)):
            x = layer(
                x,
                memory.key_values[i],
                mask=mask,
                memory_lengths=memory.lengths,
                cache=None if cache is None else cache.layer(i),
                cross_weights=seen,
            )
        if cache is not None:
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


def pad(sequences: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Ragged sequences as one (batch, longest) array and their lengths (batch,).

    The filler is token 0: whatever stands past a length is embedded, but no query that counts ever sees it.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.zeros((len(sequences), int(lengths.max())), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, lengths
