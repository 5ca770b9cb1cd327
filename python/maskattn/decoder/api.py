"""The public face of the decoder: ``load`` and ``Model``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.checkpoint import Checkpoint, read_json
from maskattn.decoder.generate import greedy
from maskattn.decoder.model import EncoderDecoder
from maskattn.decoder.rules import GreedyRules
from maskattn.decoder.score import log_probabilities, shift_right
from maskattn.decoder.text import CharacterTokenizer
from maskattn.decoder.weights import Sizes, read_weights
from maskattn.families import Family, find

Progress = Callable[[int, int], object]
#: Where transformers looks for the first decoder input, in its order.
_START_KEYS = ("decoder_start_token_id", "bos_token_id")
Ids = Sequence[Sequence[int] | IntArray]


def load(path: str | os.PathLike[str] | None = None, *, dtype: str = "float32") -> Model:
    """Load a Hugging Face checkpoint directory: config.json, model.safetensors and, if there, the tokenizer.

    Args:
        path: the directory; None is the embedded default, which writes dates in ISO 8601.
        dtype: in which the model computes. Weights stored as float16 or bfloat16 are widened.

    Raises:
        FileNotFoundError: the directory or a file is missing.
        ValueError: a file is broken, the family is unknown, or a tensor is missing or of another shape.
        NotImplementedError: a ``dtype`` other than float32.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}; pass the checkpoint's folder")
    if dtype != "float32":
        raise NotImplementedError(f"dtype must be 'float32', got {dtype!r}; other dtypes come in a later version")
    return Model(Checkpoint(Path(str(files("maskattn") / "data" / "dates") if path is None else path)))


class Model:
    """A loaded encoder-decoder; made by ``maskattn.load``.

    Attributes:
        config: config.json, with the family's defaults filled in.
        family: the declaration that drives the forward pass.
        tokenizer: or None, if the checkpoint has none that is known; the ``*_ids`` methods work all the same.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.family: Family = find(checkpoint.config.get("model_type"))
        self.config: Mapping[str, Any] = {**self.family.defaults, **checkpoint.config}
        self.sizes = Sizes.read(self.family, self.config)
        weights = read_weights(checkpoint, self.family, self.sizes, self.config)
        self._forward = EncoderDecoder(self.family, self.sizes, weights, self.config)
        self._generation = checkpoint.generation
        self._start = _decoder_start(checkpoint, self.sizes)
        self.parameters = checkpoint.parameters
        self.tokenizer, self._tokenizer_problem = _read_tokenizer(checkpoint, self.sizes)

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[str]:
        """Write one text per text, by greedy search. Arguments and errors as in ``generate_ids``.

        Raises:
            TypeError: ``texts`` is not a list of str.
            ValueError: the checkpoint has no known tokenizer; the message names the file that is wanted.
        """
        tokenizer = self._need_tokenizer()
        sources = [tokenizer.encode(text) for text in check.texts("texts", texts)]
        made = self.generate_ids(sources, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
        return [tokenizer.decode(ids) for ids in made]

    def generate_ids(
        self,
        sources: Ids,
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Greedy search: the tokens of ``transformers``' ``generate(num_beams=1, do_sample=False)`` for these weights.

        The generation config applies: start, end, forced, bad and suppressed tokens, and the least length.

        Args:
            sources: token ids per sequence, usually ending in the end token; lengths may differ.
            max_new_tokens: default as in ``transformers``: the generation config's ``max_new_tokens`` or ``max_length``
                (which counts the start token), else 20; never more than the model has positions.
            batch_size: sequences that are computed together. Similar lengths share a batch, whatever their order.
            progress: called as ``progress(done, total)`` after each batch.

        Returns:
            New tokens per source, in the order of ``sources``: without the decoder's start token, and up to the end
            token, that one included if it came before ``max_new_tokens`` ran out. No source, no work: ``[]``.

        Raises:
            TypeError, ValueError: an argument is not as above; nothing has been computed then.
            NotImplementedError: the generation config asks for something that would change the tokens, such as
                ``repetition_penalty``.
        """
        sequences = check.token_lists("sources", sources, self.sizes.source_vocab, self.sizes.max_positions)
        limit = self._max_new_tokens(max_new_tokens)
        check.count("batch_size", batch_size)
        rules = GreedyRules.read(self._generation, self._start, self.sizes.target_vocab)
        made: list[list[int]] = [[] for _ in sequences]
        for batch in _batches(sequences, batch_size, progress):
            for i, ids in zip(batch, greedy(self._forward, [sequences[i] for i in batch], rules, limit), strict=True):
                made[i] = ids
        return made

    def score(
        self, sources: Sequence[str], targets: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
    ) -> list[FloatArray]:
        """Log-probability of each token of ``targets``, the end token last. As ``score_ids``, from texts."""
        tokenizer = self._need_tokenizer()
        ids = [
            [tokenizer.encode(text) for text in check.texts(name, texts)]
            for name, texts in (("sources", sources), ("targets", targets))
        ]
        return self.score_ids(*ids, batch_size=batch_size, progress=progress)

    def score_ids(
        self, sources: Ids, targets: Ids, *, batch_size: int = 64, progress: Progress | None = None
    ) -> list[FloatArray]:
        """Per-token log-probabilities of given targets: teacher forcing with the look-ahead mask (arXiv:1706.03762).

        The decoder reads the start token and then ``targets`` without their last token; the settings of a generation
        config do not apply.

        Args:
            sources: token ids per sequence.
            targets: token ids per source, as generation would write them: without start, with end token.
            batch_size, progress: as in ``generate_ids``.

        Returns:
            One float32 array per target, of its length.

        Raises:
            TypeError, ValueError: an argument is not as above; nothing has been computed then.
        """
        sequences = check.token_lists("sources", sources, self.sizes.source_vocab, self.sizes.max_positions)
        wanted = check.token_lists("targets", targets, self.sizes.target_vocab, self.sizes.max_positions)
        check.same_length(sequences, wanted)
        check.count("batch_size", batch_size)
        scores: list[FloatArray] = [np.empty(0, np.float32)] * len(sequences)
        for batch in _batches(sequences, batch_size, progress):
            some = log_probabilities(
                self._forward, [sequences[i] for i in batch], [wanted[i] for i in batch], self._start
            )
            for i, values in zip(batch, some, strict=True):
                scores[i] = values
        return scores

    def cross_attention(self, source_ids: Sequence[int] | IntArray, target_ids: Sequence[int] | IntArray) -> FloatArray:
        """Which source tokens each target token was predicted from, under teacher forcing.

        Args:
            source_ids, target_ids: token ids of one source and one target, as in ``score_ids``.

        Returns:
            shape (decoder_layers, heads, len(target_ids), len(source_ids)), float32; rows sum to 1. Row ``t`` belongs
            to the step that predicts ``target_ids[t]``.

        Raises:
            TypeError, ValueError: as ``score_ids``.
        """
        sizes = self.sizes
        source = check.token_lists("source_ids", [source_ids], sizes.source_vocab, sizes.max_positions)
        target = check.token_lists("target_ids", [target_ids], sizes.target_vocab, sizes.max_positions)
        seen: list[FloatArray] = []
        self._forward.decode(shift_right(target, self._start)[0][None], self._forward.encode(source), seen=seen)
        return np.stack([layer[0] for layer in seen])

    def __repr__(self) -> str:
        sizes = self.sizes
        return (
            f"Model({self.family.name}, {sizes.encoder_layers}+{sizes.decoder_layers} layers, width {sizes.width}, "
            f"{self.parameters:,} parameters)"
        )

    def _max_new_tokens(self, asked: int | None) -> int:
        most, config = self.sizes.max_positions, self._generation
        remedy = f"the model has {most} positions"
        new: int | None
        if asked is not None:
            return check.count("max_new_tokens", asked, most, remedy)
        if (new := config.get("max_new_tokens")) is None:
            # max_length counts the start token, and so does the limit that transformers puts on its default of 20.
            new = config["max_length"] - 1 if config.get("max_length") is not None else min(20, most - 1)
        return check.count("max_new_tokens of the generation config", min(new, most), most, remedy)

    def _need_tokenizer(self) -> CharacterTokenizer:
        if self.tokenizer is None:
            raise ValueError(self._tokenizer_problem)
        return self.tokenizer


def _batches(sequences: Sequence[IntArray], size: int, progress: Progress | None) -> Iterator[list[int]]:
    """Indices of sequences of similar length, ``size`` at a time, longest first: too little memory shows at once."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
        if progress is not None:
            progress(min(start + size, len(order)), len(order))


def _decoder_start(checkpoint: Checkpoint, sizes: Sizes) -> int:
    settings = (config.get(key) for config in (checkpoint.generation, checkpoint.config) for key in _START_KEYS)
    start = next((value for value in settings if value is not None), None)
    if not isinstance(start, int) or not 0 <= start < sizes.target_vocab:
        raise ValueError(
            f"decoder_start_token_id must be a token id below {sizes.target_vocab}, got {start!r}; "
            "correct generation_config.json or config.json"
        )
    return start


def _read_tokenizer(checkpoint: Checkpoint, sizes: Sizes) -> tuple[CharacterTokenizer | None, str]:
    """The tokenizer, or None and what to tell who asks for it."""
    directory = checkpoint.directory
    for name in ("vocab.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            return None, f"{name} must be in {str(directory)!r}, got no such file; add it, or use the *_ids methods"
    config = read_json(directory, "tokenizer_config.json")
    if (kind := config.get("tokenizer_class")) != "CharacterTokenizer":
        return None, (
            f"tokenizer_class in tokenizer_config.json must be CharacterTokenizer, got {kind!r}; "
            "use its own tokenizer and the *_ids methods"
        )
    tokenizer = CharacterTokenizer.read(read_json(directory, "vocab.json"), config)
    if tokenizer.vocab_size > sizes.source_vocab:
        raise ValueError(
            f"vocab.json must hold ids below the model's vocab_size {sizes.source_vocab}, got "
            f"{tokenizer.vocab_size - 1}; take both files from the same model"
        )
    return tokenizer, ""
