"""The public face of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.generation import GenerationMethods
from maskattn.decoder.heads import label_names
from maskattn.decoder.memory import Prefix
from maskattn.decoder.model import Transformer
from maskattn.decoder.requests import Ids, Progress, PromptIds, Requests, Sources, batches
from maskattn.decoder.score import log_probabilities
from maskattn.decoder.text import TextMethods, Texts
from maskattn.decoder.transcription.methods import SpeechMethods
from maskattn.decoder.views import cross_attention
from maskattn.families import Family, find


class Model(GenerationMethods, TextMethods, SpeechMethods):
    """A loaded model; made by ``maskattn.load``. What it can do depends on its family and its heads.

    Attributes:
        config: config.json, with the family's defaults filled in.
        family: the declaration that drives the forward pass.
        labels: names of the classes that ``classify`` scores; empty without a head.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str = "float32",
        place: Callable[[Transformer], Transformer] = lambda forward: forward,
    ) -> None:
        self.family: Family = find(checkpoint.config.get("model_type"))
        self.config: Mapping[str, Any] = {**self.family.defaults, **checkpoint.config}
        self._forward = place(Transformer(self.family, self.config, checkpoint, dtype))
        self._generation, self._directory = checkpoint.generation, checkpoint.directory
        self._requests = Requests(self._forward, self.config, self._generation)
        self.parameters = checkpoint.parameters
        checkpoint.close()
        self.labels = label_names(self.config, self._forward.classifier)
        vocab = self._requests.reads.sizes.vocab or self._forward.vocab  # who hears reads no tokens
        self._texts = Texts(checkpoint, self.family, vocab, continues=self._forward.encoder is None)

    def score_ids(
        self,
        sources: Ids | FloatArray,
        targets: Ids,
        *,
        prompt_ids: PromptIds | None = None,
        prefix_embeddings: Sequence[FloatArray] | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[FloatArray]:
        """Per-token log-probabilities of given targets: teacher forcing with the look-ahead mask (arXiv:1706.03762).

        The decoder reads the start token, or the source as a prompt, and then ``targets`` without their last token; the
        settings of a generation config do not apply.

        Args:
            sources, prompt_ids, prefix_embeddings: as in ``generate_ids``.
            targets: token ids per source, as generation would write them: without start, with end token.
            batch_size, progress: as in ``generate_ids``.

        Returns:
            One float32 array per target, of its length.

        Raises:
            TypeError, ValueError: an argument is not as above; nothing has been computed then.
        """
        sequences = self._requests.sequences("sources", sources)
        prompts = self._requests.prompts(sequences, prompt_ids)
        prefixes = self._requests.prefixes(prefix_embeddings, len(sequences))
        wanted = check.token_lists(
            "targets", targets, self._requests.writes.sizes.vocab, self._requests.writes.sizes.positions
        )
        check.same_length(sequences, wanted)
        check.count("batch_size", batch_size)
        for i, (prompt, target) in enumerate(zip(prompts, wanted, strict=True)):
            self._requests.check_room(i, len(prompt) + (len(prefixes[i]) if prefixes else 0), len(target))
        scores: list[FloatArray] = [np.empty(0, np.float32)] * len(sequences)
        for batch in batches(sequences, batch_size, progress):
            some = log_probabilities(
                self._forward,
                [prompts[i] for i in batch],
                [wanted[i] for i in batch],
                self._memory([sequences[i] for i in batch]),
                Prefix([prefixes[i] for i in batch]) if prefixes else None,
            )
            for i, values in zip(batch, some, strict=True):
                scores[i] = values
        return scores

    def encode(
        self,
        sources: Sources | FloatArray,
        *,
        segments: Ids | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[FloatArray]:
        """The encoder's output: the embeddings of sequences, and what a decoder can take as ``prefix_embeddings``.

        Args:
            sources: texts, pairs of texts, or what ``generate_ids`` takes.
            segments: the segment (token type) of each token id, below ``type_vocab_size``; pairs bring theirs along.
                Default all 0. Models that have no segments take none into account.
            batch_size, progress: as in ``generate_ids``.

        Returns:
            Per source the last hidden states, shape (its length, width), float32.

        Raises:
            TypeError, ValueError: an argument is not as above, or the family has no encoder.
        """
        return self._encoded(sources, segments, batch_size, progress, lambda hidden: hidden)

    def pool(
        self,
        sources: Sources,
        *,
        segments: Ids | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> FloatArray:
        """One vector per sequence, by the checkpoint's pooler (of the first token's hidden state; BERT, RoBERTa).

        Args:
            sources, segments, batch_size, progress: as in ``encode``.

        Returns:
            shape (number of sources, width), float32.

        Raises:
            TypeError, ValueError: an argument is not as above, or the checkpoint has no pooler.
        """
        pooler = self._forward.pooler
        if pooler is None:
            raise ValueError(
                "pool must be asked of a checkpoint with a pooler, got none; average what encode returns instead"
            )
        pooled = self._encoded(sources, segments, batch_size, progress, lambda hidden: pooler(hidden[None])[0])
        return np.stack(pooled) if pooled else np.zeros((0, pooler.labels), np.float32)

    def classify(
        self,
        sources: Sources,
        *,
        segments: Ids | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[FloatArray]:
        """Scores of the classes in ``labels``, before softmax, for each sequence or for each of its tokens.

        Args:
            sources, segments, batch_size, progress: as in ``encode``.

        Returns:
            Per source an array (labels,), or (its length, labels) where the head classifies tokens; float32.

        Raises:
            TypeError, ValueError: an argument is not as above, or the checkpoint has no head for classes.
        """
        classifier = self._forward.classifier
        if classifier is None:
            raise ValueError(
                f"classify must be asked of a checkpoint with a head for classes, got "
                f"{self.config.get('architectures')}; "
                f"known for {self.family.name}: {', '.join(self.family.classifiers) or 'none'}"
            )
        return self._encoded(sources, segments, batch_size, progress, lambda hidden: classifier(hidden[None])[0])

    def cross_attention(
        self,
        source_ids: Sequence[int] | IntArray | FloatArray,
        target_ids: Sequence[int] | IntArray,
        *,
        heads: Sequence[tuple[int, int]] | None = None,
        prompt_ids: Sequence[int] | IntArray | None = None,
    ) -> FloatArray:
        """Which source positions each target token was predicted from, under teacher forcing.

        Args:
            source_ids, target_ids: token ids of one source and one target, as in ``score_ids``; for Whisper log-mel
                features (mels, frames) of one sound.
            heads: only these, pairs (layer, head) from 0, negative ones from the end, such as ``alignment_heads`` in
                the generation config of a Whisper model. Default: all of all layers.
            prompt_ids: as in ``generate_ids``.

        Returns:
            shape (layers, heads, len(target_ids), source_len), or (len(heads), len(target_ids), source_len) with
            ``heads``; float32, rows sum to 1. Row ``t`` belongs to the step that predicts ``target_ids[t]``.

        Raises:
            TypeError, ValueError: as ``score_ids``; or the family has no encoder and decoder, or no such head.
        """
        writes = self._requests.writes.sizes
        sources: Any = [source_ids]
        if isinstance(source_ids, np.ndarray) and source_ids.ndim == 2:  # sound
            sources = source_ids[None]
        source = self._requests.sequences("source_ids", sources)
        pairs = self._requests.heads("heads", heads, "cross_attention")
        target = check.token_lists("target_ids", [target_ids], writes.vocab, writes.positions)
        prompts = self._requests.prompts(source, prompt_ids)
        self._requests.check_room(0, len(prompts[0]), len(target[0]))
        return cross_attention(self._forward, prompts, target, self._forward.encode(source), pairs)[0]

    def __repr__(self) -> str:
        stacks = [stack for stack in (self._forward.encoder, self._forward.decoder) if stack is not None]
        layers = "+".join(str(stack.sizes.layers) for stack in stacks)
        return (
            f"Model({self.family.name}, {layers} layers, width {stacks[0].sizes.width}, {self.parameters:,} parameters)"
        )

    @property
    def width(self) -> int:
        """Of the states of the stack that writes, or of the encoder: the last axis of ``prefix_embeddings``."""
        stack = self._forward.decoder or self._requests.reads
        return stack.sizes.width

    def _encoded(
        self,
        sources: Sources | FloatArray,
        segments: Ids | None,
        batch_size: int,
        progress: Progress | None,
        function: Callable[[FloatArray], FloatArray],
    ) -> list[FloatArray]:
        """``function`` of each source's hidden states (its length, width)."""
        if self._forward.encoder is None:
            raise ValueError(
                f"this needs a model with an encoder, got family {self.family.name}; use generate or score"
            )
        ids, of_pairs = self._texts.read("sources", sources)
        sequences = self._requests.sequences("sources", ids)
        types = self._requests.segments(sequences, segments if of_pairs is None else of_pairs)
        check.count("batch_size", batch_size)
        made: list[FloatArray] = [np.empty(0, np.float32)] * len(sequences)
        for batch in batches(sequences, batch_size, progress):
            hidden, lengths = self._forward.encode_hidden(
                [sequences[i] for i in batch], None if types is None else [types[i] for i in batch]
            )
            for i, states in zip(batch, np.split(hidden, lengths.cumsum()[:-1]), strict=True):
                made[i] = function(states.copy())
        return made
