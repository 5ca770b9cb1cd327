"""The forward pass, driven by a ``Family``: an encoder, a decoder with or without a cache, heads; each optional."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskattn import _core, masks
from maskattn.cache import KVCache
from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.core_layers import CoreLayers, SharedRows, Steps
from maskattn.decoder.heads import Classifier, LanguageHead, find_head, read_classifier, read_language_head, read_pooler
from maskattn.decoder.inputs import TokenEmbedding
from maskattn.decoder.layers import DecoderLayer, EncoderLayer
from maskattn.decoder.memory import CrossView, Memory, MemoryRows, Prefix
from maskattn.decoder.settings import Settings, check_variant
from maskattn.decoder.weights import LayerStack, Reader, attention_dtype, decoder_layer, encoder_layer
from maskattn.families import Family


class Transformer:
    """A Transformer (arXiv:1706.03762) over ``maskattn.attention``, in float32; its matrices are stored in ``dtype``.

    Around attention everything is float32 where the matrices are, and bfloat16 where these are less than that.

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
        self._kv_dtype = attention_dtype(dtype)
        self._core_encoder: CoreLayers | None = None
        self._core_decoder: CoreLayers | None = None
        known: list[str] = []
        if family.encoder is not None:
            reader = Reader(checkpoint, family, Settings(family.name, "encoder", family.encoder, config), dtype)
            self.encoder = stack = reader.stack(encoder_layer)
            self._core_encoder = CoreLayers.of(stack)
            known += reader.names_of_tables()
        if family.decoder is not None:
            reader = Reader(checkpoint, family, Settings(family.name, "decoder", family.decoder, config), dtype)
            self.decoder = written = reader.stack(decoder_layer)
            self._core_decoder = CoreLayers.of(written)
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

    @property
    def length_shows(self) -> bool:
        """Whether a decoder's keys turn by the length of their sequence, so that a part is not read as in the whole."""
        rope = None if self.decoder is None else self.decoder.positions.rope
        if rope is None:
            return False
        return not np.array_equal(rope.frequencies(np.array([1])), rope.frequencies(np.array([1 << 20])))

    def encode_hidden(
        self, sources: Sequence[Any], segments: Sequence[IntArray] | None = None
    ) -> tuple[FloatArray, IntArray]:
        """The encoder's output for ragged sources, without padding.

        Args:
            sources: token ids of each sequence, none empty; or features (mels, frames) of each, of equal shapes.
            segments: the segment (token type) of each token; default all the first.

        Returns:
            shape (tokens, width), float32, one source behind the other; and lengths (batch,).
        """
        stack = self.encoder
        assert stack is not None
        if stack.sizes.vocab:
            lengths = np.array([len(source) for source in sources])
            positions = np.concatenate([np.arange(length) for length in lengths])[None]
            of_tokens = () if segments is None else (np.concatenate(segments)[None],)
            x = stack.embed(np.concatenate(sources)[None], stack.positions.rows(positions), *of_tokens)
        else:
            lengths = np.full(len(sources), -(-sources[0].shape[1] // 2))
            positions = np.tile(np.arange(lengths[0]), len(sources))[None]
            x = stack.embed(np.stack(sources), stack.positions.rows(np.arange(lengths[0])[None]))
        x = x.reshape(-1, x.shape[-1])
        if self._core_encoder is not None:
            of_rows = stack.positions.rotation_of_rows(positions[0], lengths.repeat(lengths))
            self._core_encoder.run(x, lengths, rotation=of_rows)
            return _through(stack.final, x), lengths
        padded, real = _padded(x, lengths)
        rotation = stack.positions.rotation(np.arange(padded.shape[1])[None], lengths.max(keepdims=True))
        for layer, mask in zip(stack.layers, stack.masks, strict=True):
            seen = None if isinstance(mask, masks.Full) else mask
            padded = layer(padded, mask=seen, bias=stack.positions.bias, kv_lengths=lengths, rotation=rotation)
        return _through(stack.final, padded)[real], lengths

    def encode(self, sources: Sequence[Any]) -> Memory:
        """As :meth:`encode_hidden`, as the cross-attention keys and values of every decoder layer."""
        x, lengths = self.encode_hidden(sources)
        assert self.decoder is not None
        readers = [layer.cross for layer in self.decoder.layers if layer.cross is not None]
        shape = len(readers), 2, readers[0].kv_heads or readers[0].heads, len(x), readers[0].head_dim
        kept = _core.empty(np.dtype(self._kv_dtype), shape)  # each head's tokens side by side, as steps read them
        if self._core_decoder is not None:
            self._core_decoder.remember(x, kept)
        else:
            for both, reader in zip(kept, readers, strict=True):
                both[0], both[1] = (heads[0] for heads in reader.project(x[None]))
        pairs = tuple((keys.transpose(1, 0, 2), values.transpose(1, 0, 2)) for keys, values in kept)
        return Memory(pairs, lengths.cumsum() - lengths, lengths)

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
        owners: IntArray | None = None,
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
            owners: shape (batch, new): of sequences that are alike up to a token, the one that computes it, and has its
                state. Where layers run in Python, all compute it.

        Returns:
            shape (batch, new, width), float32; with a prefix and nothing in ``cache``, each sequence's prefix stands
            before its tokens. With a ``view`` of fewer layers, the states behind these.
        """
        stack = self.decoder
        assert stack is not None
        assert isinstance(stack.embed, TokenEmbedding)
        x = stack.embed.rows(tokens)
        starts = np.zeros(len(tokens), np.int64) if cache is None else cache[0].lengths.astype(np.int64, copy=False)
        if prefix is not None and not starts.any():
            x, new_lengths = prefix.before(x, new_lengths)
        if cache is None and self._kv_dtype != "float32":  # so that keys are rounded as those are that are kept
            cache = self.new_cache(len(x), x.shape[1])
        seen = stack.masks
        if prefix is not None:
            sees_prefix = masks.Padding(prefix.lengths)
            seen = tuple(mask | sees_prefix for mask in seen)
        looked_at = view is not None or taps is not None
        if not looked_at and self._core_decoder is not None and (cache is None or CoreLayers.takes(cache)):
            return self._decode_rows(x, starts, new_lengths, cache, None if prefix is None else seen, memory, owners)
        new = x.shape[1]
        lengths = starts + (new if new_lengths is None else new_lengths)
        positions = starts[:, None] + np.arange(new)
        x = stack.embed.finish(x, stack.positions.rows(positions))
        options: dict[str, Any] = {
            "bias": stack.positions.bias,
            "rotation": stack.positions.rotation(positions, lengths),
        }
        if cache is None:
            options["kv_lengths"] = None if new_lengths is None else lengths
        else:
            options["new_lengths"] = new_lengths
        if memory is not None:
            options["memory_lengths"] = memory.lengths
        for i, (layer, mask) in enumerate(zip(stack.layers, seen, strict=True)):
            if view is not None:
                if i > view.deepest:
                    return x
                options |= view.options(i)
            if taps is not None and i in taps:
                taps[i] = x.copy()
            x = layer(
                x,
                None if memory is None else memory.padded(i),
                # The last position sees all that is stored under the look-ahead mask: no plan is needed.
                mask=None if new == 1 and new_lengths is None and isinstance(mask, masks.Causal) else mask,
                cache=None if cache is None else cache[i],
                **options,
            )
            if view is not None:
                view.collect(i)
        return _through(stack.final, x)

    def step(self, tokens: IntArray, memory: Memory | None, cache: KVCache, prefix: Prefix | None = None) -> FloatArray:
        """:meth:`decode` of one token (batch,) behind each sequence in ``cache``: hidden states (batch, width)."""
        stack, core = self.decoder, self._core_decoder
        assert stack is not None
        assert isinstance(stack.embed, TokenEmbedding)
        if core is None or prefix is not None or not CoreLayers.takes(cache):
            return self.decode(tokens[:, None], memory, cache, prefix=prefix)[:, 0]
        starts = cache[0].lengths
        x = stack.embed.finish(stack.embed.rows(tokens), stack.positions.rows(starts))
        rotation = stack.positions.rotation_of_rows(starts, starts + 1)
        core.run(x, np.ones(len(x), np.int64), cache=cache, memory=memory, rotation=rotation)
        return _through(stack.final, x)

    def steps(self, memory: Memory | None, cache: KVCache, prefix: Prefix | None = None) -> Steps | None:
        """:meth:`step` of many tokens, as long as they ``go_on``; None where there is no such short way."""
        core = self._core_decoder
        return None if core is None or prefix is not None else core.steps(cache, memory)

    def _decode_rows(
        self,
        x: FloatArray,
        starts: IntArray,
        new_lengths: IntArray | None,
        cache: KVCache | None,
        seen: Sequence[masks.Mask] | None,
        memory: Memory | None,
        owners: IntArray | None,
    ) -> FloatArray:
        """Embeddings (batch, new, width) through the layers, without the padding behind ``new_lengths``."""
        stack = self.decoder
        assert stack is not None
        assert self._core_decoder is not None
        assert isinstance(stack.embed, TokenEmbedding)
        batch, new, _ = x.shape
        counts = np.full(batch, new) if new_lengths is None else new_lengths
        real, lengths, shared = np.arange(new) < counts[:, None], starts + counts, None
        if owners is not None:
            shared, real = SharedRows.of(owners, real, starts)
            counts = real.sum(axis=1)
        positions = (starts[:, None] + np.arange(new))[real]
        whole = len(positions) == batch * new
        rows = x.reshape(-1, x.shape[2]) if whole else x[real]
        rows = stack.embed.finish(rows, stack.positions.rows(positions))
        rotation = stack.positions.rotation_of_rows(positions, lengths.repeat(counts))
        self._core_decoder.run(rows, counts, cache=cache, seen=seen, memory=memory, rotation=rotation, shared=shared)
        rows = _through(stack.final, rows)
        if whole:
            return rows.reshape(batch, new, -1)
        padded = np.zeros((batch, new, rows.shape[1]), np.float32)
        padded[real] = rows
        return padded

    def logits(self, hidden: FloatArray) -> FloatArray:
        """(..., width) -> (..., vocab)."""
        assert self.head is not None
        return self.head(hidden)

    def best(self, hidden: FloatArray) -> IntArray:
        """(rows, width) -> (rows,): the token with the highest logit, the first one of equals."""
        assert self.head is not None
        return self.head.best(hidden)

    def most_probable(self, hidden: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """(rows, width) -> (rows, count) each: log-probabilities of the most probable tokens, and these, best first."""
        assert self.head is not None
        return self.head.most_probable(hidden, count)

    def log_probabilities(self, hidden: FloatArray) -> FloatArray:
        """(rows, width) -> (rows, vocab), to the bit as :meth:`most_probable_allowed` has them."""
        assert self.head is not None
        return self.head.log_probabilities(hidden)

    def most_probable_allowed(
        self, hidden: FloatArray, count: int, forbidden: Sequence[set[int]] | None
    ) -> tuple[FloatArray, IntArray] | None:
        """:meth:`most_probable` of those that are not ``forbidden`` for a row; None: look at the scores of all."""
        assert self.head is not None
        return None if forbidden is None else self.head.most_probable_allowed(hidden, count, forbidden)

    def new_cache(self, batch: int, capacity: int = 1024, *, page_size: int | None = None) -> KVCache:
        """An empty cache for ``batch`` sequences of up to ``capacity`` positions."""
        assert self.decoder is not None
        sizes = self.decoder.sizes
        return KVCache(
            sizes.layers, batch, sizes.kv_heads, capacity, sizes.head_dim, dtype=self._kv_dtype, page_size=page_size
        )

    def new_memory_rows(self) -> MemoryRows:
        """For the memories of a batch that changes between steps."""
        return MemoryRows()

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


def _padded(rows: FloatArray, lengths: IntArray, longest: int | None = None) -> tuple[FloatArray, BoolArray]:
    """(rows, width), one sequence behind the other, as (batch, longest, width); and which of its rows are theirs."""
    real = np.arange(lengths.max() if longest is None else longest) < lengths[:, None]
    padded = np.zeros((*real.shape, rows.shape[1]), np.float32)
    padded[real] = rows
    return padded, real


def pad(sequences: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Ragged sequences as one (batch, longest) array and their lengths (batch,).

    The filler is token 0: whatever stands past a length is embedded, but no query that counts ever sees it.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.zeros((len(sequences), int(lengths.max())), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, lengths
