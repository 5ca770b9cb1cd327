"""llama.cpp by its C interface (``llama-cpp-python``), greedy by NumPy's argmax; int8 is its Q8_0, int4 its Q4_0."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from bench.generation import shapes
from bench.generation.unsupported import Unsupported

FILES = {"bfloat16": "MOSTLY_BF16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
MOST = 2048  # tokens read at once


def converted(path: Path, dtype: str) -> Path:
    return path / f"{dtype}.gguf"


def convert(path: Path, dtype: str) -> None:
    from bench.generation import gguf_file

    plain, out = converted(path, "float32"), converted(path, dtype)
    if not plain.is_file():
        gguf_file.write(path, plain)
    if not out.is_file():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{FILES[dtype]}")
        if llama_cpp.llama_model_quantize(str(plain).encode(), str(out).encode(), ctypes.byref(params)):
            raise Unsupported(f"llama.cpp cannot store the model as {dtype}")


@llama_cpp.llama_log_callback
def _silent(level: Any, text: Any, data: Any) -> None:
    pass


class Side:
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        llama_cpp.llama_log_set(_silent, None)
        llama_cpp.llama_backend_init()
        self.config, self.threads = shapes.settings(path), threads
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(converted(path, dtype)).encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp could not load the file")
        self.contexts: dict[int, Any] = {}  # by the number of sequences

    def write(self, sources: Any, tokens: int, beams: int) -> list[list[int]]:
        if beams > 1:
            raise Unsupported("llama.cpp has no beam search")
        if shapes.has_encoder(self.config) and len(sources) > 1:
            raise Unsupported("llama.cpp encodes one source at a time")
        context, batch = self.context(len(sources))
        last, places = self.read(context, batch, sources)
        made: list[list[int]] = [[] for _ in sources]
        for _ in range(tokens):
            for row, ids in enumerate(made):
                ids.append(int(self.logits_of(context, last[row]).argmax()))
            if len(made[0]) < tokens:
                fill(batch, [(ids[-1], places[row], row, True) for row, ids in enumerate(made)])
                run(llama_cpp.llama_decode, context, batch)
                last, places = range(len(made)), [place + 1 for place in places]
        return made

    def read(self, context: Any, batch: Any, sources: Any) -> tuple[Any, list[int]]:
        """Sources or prompts; returns where each sequence's last logits are, and its next position."""
        if shapes.has_encoder(self.config):
            fill(batch, [(token, i, 0, True) for i, token in enumerate(sources[0])])
            run(llama_cpp.llama_encode, context, batch)
            sources = [[self.config["decoder_start_token_id"]]]
        ends = np.cumsum([len(source) for source in sources]) - 1
        known = [
            (token, i, row, i + 1 == len(source))
            for row, source in enumerate(sources)
            for i, token in enumerate(source)
        ]
        fill(batch, known)
        run(llama_cpp.llama_decode, context, batch)
        return ends.tolist(), [len(source) for source in sources]

    def context(self, sequences: int) -> tuple[Any, Any]:
        """With nothing in its cache."""
        if sequences not in self.contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = 1536 if sequences == 1 else 4096, MOST, 512
            params.n_threads = params.n_threads_batch = self.threads
            params.n_seq_max, params.kv_unified = sequences, True
            context = llama_cpp.llama_init_from_model(self.model, params)
            if not context:
                raise RuntimeError("llama.cpp could not make a context")
            self.contexts[sequences] = context, llama_cpp.llama_batch_init(MOST, 0, sequences)
        context, batch = self.contexts[sequences]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        return context, batch

    def logits_of(self, context: Any, place: int) -> Any:
        pointer = llama_cpp.llama_get_logits_ith(context, place)
        return np.ctypeslib.as_array(pointer, (self.config["vocab_size"],))

    def logits(self, sources: Any, targets: Any) -> Any:
        found = []
        for source, target in zip(sources, targets.tolist(), strict=True):
            context, batch = self.context(1)
            [last], [place] = self.read(context, batch, [source])
            rows = [self.logits_of(context, last).copy()]
            for i, token in enumerate(target[:-1]):
                fill(batch, [(token, place + i, 0, True)])
                run(llama_cpp.llama_decode, context, batch)
                rows.append(self.logits_of(context, 0).copy())
            found.append(rows)
        return np.array(found)


def fill(batch: Any, known: list[tuple[int, int, int, bool]]) -> None:
    """``known``: token, position, sequence, and whether its logits are wanted."""
    for i, (token, place, row, wanted) in enumerate(known):
        batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
    batch.n_tokens = len(known)


def run(function: Any, context: Any, batch: Any) -> None:
    if status := function(context, batch):
        raise RuntimeError(f"{function.__name__} returned {status}")
