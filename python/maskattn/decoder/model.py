"""The forward pass, driven by a ``Family``: an encoder, a decoder with or without a cache, heads; each optional."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskattn import masks
from maskattn.cache import KVCache
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.heads import Classifier, LanguageHead, find_head, read_classifier, read_language_head, read_pooler
from maskattn.decoder.inputs import TokenEmbedding
from maskattn.decoder.layers import DecoderLayer, EncoderLayer
from maskattn.decoder.memory import CrossView, Memory, Prefix
from maskattn.decoder.settings import Settings, check_variant
from maskattn.decoder.step import Step
from maskattn.decoder.weights import LayerStack, Reader, decoder_layer, encoder_layer
from maskattn.families import Family


class Transformer:
    """A Transformer (arXiv:1706.03762) over ``maskattn.attention``, in float32; its matrices are stored in ``dtype``.

    Attributes:
        encoder, decoder: the stacks, or None.
        head: scores of the next token, where there is a decoder.
        classifier, pooler: of an encoder's output, or None.
    """

    def __init__(
        self, family: Family, config: Mapping[str, Any], checkpoint: Checkpoint, dtype: str = "float32"
    ) -> None:
        check_variant(family, config)
        self.family = family
        self.encoder: LayerStack[EncoderLayer] | None = None
        self.decoder: LayerStack[DecoderLayer] | None = None
        self.head: LanguageHead | None = None
        self._step: Step | None = None
        known: list[str] = []
        if family.encoder is not None:
            reader = Reader(checkpoint, family, Settings(family.name, "encoder", family.encoder, config), dtype)
            self.encoder = reader.stack(encoder_layer)
            known += reader.names_of_tables()
        if family.decoder is not None:
            reader = Reader(checkpoint, family, Settings(family.name, "decoder", family.decoder, config), dtype)
            self.decoder = reader.stack(decoder_layer)
            self._step = Step.of(self.decoder.layers, self.decoder.masks, self.decoder.positions)
            self.head = read_language_head(reader, family, config)
            known += reader.names_of_tables()
        self.classifier, self.pooler = self._read_classifiers(family, config, checkpoint)
        checkpoint.check_all_used(known, family.unused)

    @property
    def vocab(self) -> int:
        """How many tokens the decoder can write."""
        assert self.decoder is not None
        return self.decoder.sizes.vocab

    @property
    def switch(self) -> int | None:
        """The length past which a decoder's stored keys no longer fit and are computed again; None: there is none."""
        rope = None if self.decoder is None else self.decoder.positions.rope
        return None if rope is None else rope.switch

    def encode_hidden(
        self, sources: Sequence[Any], segments: Sequence[IntArray] | None = None
    ) -> tuple[FloatArray, IntArray | None]:
        """The encoder's output for ragged sources; padding on the right is hidden by their lengths.

        Args:
            sources: token ids of each sequence, none empty; or features (mels, frames) of each, of equal shapes.
            segments: the segment (token type) of each token; default all the first.

        Returns:
            shape (batch, len, width), float32; and lengths (batch,), None where nothing is padding.
        """
        stack = self.encoder
        assert stack is not None
        inputs, lengths = pad(sources) if stack.sizes.vocab else (np.stack(sources), None)
        length = inputs.shape[1] if stack.sizes.vocab else -(-inputs.shape[2] // 2)
        if lengths is not None and (lengths == length).all():
            lengths = None
        positions = np.arange(length)[None]
        rows = stack.positions.rows(positions)
        x = stack.embed(inputs, rows) if segments is None else stack.embed(inputs, rows, pad(segments)[0])
        rotation = stack.positions.rotation(positions, np.array([length]))
        for layer, mask in zip(stack.layers, stack.masks, strict=True):
            seen = None if isinstance(mask, masks.Full) else mask
            x = layer(x, mask=seen, bias=stack.positions.bias, kv_lengths=lengths, rotation=rotation)
        return _through(stack.final, x), lengths

    def encode(self, sources: Sequence[Any]) -> Memory:
        """As :meth:`encode_hidden`, as the cross-attention keys and values of every decoder layer."""
        x, lengths = self.encode_hidden(sources)
        assert self.decoder is not None
        pairs = [layer.cross.project(x) for layer in self.decoder.layers if layer.cross is not None]
        return Memory(tuple(pairs), lengths)

    def decode(
        self,
        tokens: IntArray,
        memory: Memory | None = None,
        cache: KVCache | None = None,
        *,
        new_lengths: IntArray | None = None,
        prefix: Prefix | None = None,
        view: CrossView | None = None,
        taps: dict[int, FloatArray] | None = None,
    ) -> FloatArray:
        """Hidden states of decoder inputs.

        Args:
            tokens: shape (batch, new), the inputs that follow those in ``cache``; all inputs without a cache.
            memory: the encoded sources, where there is an encoder.
            cache: gets the keys and values of the inputs.
            new_lengths: shape (batch,): how many of ``tokens`` are a sequence's own, the first ones. Default all.
            prefix: embeddings in front of the first tokens, seen from everywhere.
            view: gets cross-attention weights; layers behind the last one that it asks for are left out.
            taps: of each of its keys, what goes into that layer is put there, shape (batch, new, width).

        Returns:
            shape (batch, new, width), float32; with a prefix and nothing in ``cache``, each sequence's prefix stands
            before its tokens. With a ``view`` of fewer layers, the states behind these.
        """
        stack = self.decoder
        assert stack is not None
        assert isinstance(stack.embed, TokenEmbedding)
        x = stack.embed.rows(tokens)
        starts = np.zeros(len(tokens), np.int64) if cache is None else cache[0].lengths
        if prefix is not None and not starts.any():
            x, new_lengths = prefix.before(x, new_lengths)
        new = x.shape[1]
        lengths = starts + (new if new_lengths is None else new_lengths)
        positions = starts[:, None] + np.arange(new)
        x = stack.embed.finish(x, stack.positions.rows(positions))
        rotation = stack.positions.rotation(positions, lengths)
        plain = new == 1 and new_lengths is None and prefix is None and view is None and taps is None
        if plain and cache is not None and self._step is not None and self._step.run(x, cache, memory, rotation):
            return _through(stack.final, x)
        options: dict[str, Any] = {"bias": stack.positions.bias, "rotation": rotation}
        if cache is None:
            options["kv_lengths"] = None if new_lengths is None else lengths
        else:
            options["new_lengths"] = new_lengths
        if memory is not None:
            options["memory_lengths"] = memory.lengths
        for i, (layer, mask) in enumerate(zip(stack.layers, stack.masks, strict=True)):
            if view is not None:
                if i > view.deepest:
                    return x
                options |= view.options(i)
            if taps is not None and i in taps:
                taps[i] = x.copy()
            if prefix is not None:
                mask = mask | masks.Padding(prefix.lengths)
            x = layer(
                x,
                None if memory is None else memory.key_values[i],
                # The last position sees all that is stored under the look-ahead mask: no plan is needed.
                mask=None if new == 1 and new_lengths is None and isinstance(mask, masks.Causal) else mask,
                cache=None if cache is None else cache[i],
                **options,
            )
            if view is not None:
                view.collect(i)
        return _through(stack.final, x)

    def logits(self, hidden: FloatArray) -> FloatArray:
        """(..., width) -> (..., vocab)."""
        assert self.head is not None
        return self.head(hidden)

    def new_cache(self, batch: int, capacity: int = 1024) -> KVCache:
        """An empty cache for ``batch`` sequences of up to ``capacity`` positions."""
        assert self.decoder is not None
        sizes = self.decoder.sizes
        return KVCache(sizes.layers, batch, sizes.kv_heads, capacity, sizes.head_dim)

    def _read_classifiers(
        self, family: Family, config: Mapping[str, Any], checkpoint: Checkpoint
    ) -> tuple[Classifier | None, Classifier | None]:
        if self.encoder is None:
            return None, None
        width = self.encoder.sizes.width
        head = find_head(family, config)
        classifier = None if head is None else read_classifier(checkpoint, family, head, width, config)
        pooler = None if family.pooler is None else read_pooler(checkpoint, family, family.pooler, width)
        return classifier, pooler


def _through(functions: Sequence[Callable[[FloatArray], FloatArray]], x: FloatArray) -> FloatArray:
    for function in functions:
        x = function(x)
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
