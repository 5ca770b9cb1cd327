"""CTranslate2: translators for models with an encoder, generators without one, and its Whisper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from bench.generation import shapes
from bench.generation.unsupported import Unsupported

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8_float32"}


def compute_type(dtype: str) -> str:
    kind = DTYPES.get(dtype, dtype)
    if kind not in ctranslate2.get_supported_compute_types("cpu"):
        raise Unsupported(f"CTranslate2 computes no {dtype} on this processor")
    return kind


def converted(path: Path, dtype: str) -> Path:
    return path / f"ctranslate2-{dtype}"


def convert(path: Path, dtype: str) -> None:
    kind, out = compute_type(dtype), converted(path, dtype)
    if not (out / "model.bin").is_file():
        from ctranslate2.converters import TransformersConverter

        quantization = None if dtype == "float32" else kind
        TransformersConverter(str(path)).convert(str(out), quantization=quantization, force=True)


class Side:
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        self.config = shapes.settings(path)
        made: Any = ctranslate2.Translator if shapes.has_encoder(self.config) else ctranslate2.Generator
        if shapes.hears(self.config):
            made = ctranslate2.models.Whisper
        options = {"compute_type": compute_type(dtype), "intra_threads": threads, "inter_threads": 1}
        self.model = made(str(converted(path, dtype)), device="cpu", **options)
        self.words = shapes.words(self.config)
        self.ids = {word: i for i, word in enumerate(self.words)}

    def write(self, sources: Any, tokens: int, beams: int) -> list[list[int]]:
        if shapes.hears(self.config):
            sound = ctranslate2.StorageView.from_array(sources)
            # Its max_length counts what stands before, and half of it is all that may be written.
            most = max(2 * tokens, tokens + len(shapes.SPOKEN))
            options = {"suppress_blank": False, "suppress_tokens": [], "max_length": most, "beam_size": beams}
            made = self.model.generate(sound, [list(shapes.SPOKEN)] * len(sources), **options)
            return [found.sequences_ids[0][:tokens] for found in made]
        texts = self.texts(sources)
        if shapes.has_encoder(self.config):
            made = self.model.translate_batch(texts, max_decoding_length=tokens, beam_size=beams)
            return [[self.ids[word] for word in found.hypotheses[0]] for found in made]
        options = {"max_length": tokens, "beam_size": beams, "include_prompt_in_result": False}
        return [found.sequences_ids[0] for found in self.model.generate_batch(texts, **options)]

    def texts(self, rows: Any) -> list[list[str]]:
        return [[self.words[token] for token in row] for row in rows]

    def log_probabilities(self, sources: Any, targets: Any) -> Any:
        if shapes.hears(self.config):
            raise Unsupported("CTranslate2 does not score what Whisper would write")
        if shapes.has_encoder(self.config):
            made = self.model.score_batch(self.texts(sources), self.texts(targets))
            return np.array([found.log_probs[: targets.shape[1]] for found in made])
        whole = np.concatenate([np.array(sources), targets], axis=1)
        made = self.model.score_batch(self.texts(whole))
        return np.array([found.log_probs[-targets.shape[1] :] for found in made])
