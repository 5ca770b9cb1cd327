"""OpenVINO's own generator, for decoder-only models, on the graphs of optimum-intel (which ``with_openvino`` makes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
import openvino_genai

from bench.generation import shapes
from bench.generation.padding import pad
from bench.generation.unsupported import Unsupported

STORED = {"float32": "float32", "bfloat16": "float32", "int8": "int8", "int4": "int4"}
FLOATS = {"float32": "f32", "bfloat16": "bf16"}


class Side:
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        self.config = shapes.settings(path)
        if shapes.has_encoder(self.config):
            raise Unsupported("OpenVINO GenAI writes with decoder-only models; see openvino")
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": ""}
        properties["ATTENTION_BACKEND"] = "SDPA"  # the other one is for many requests, and slower with one
        if dtype in FLOATS:
            properties |= {"INFERENCE_PRECISION_HINT": FLOATS[dtype], "KV_CACHE_PRECISION": FLOATS[dtype]}
        if dtype == "float32":
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        graph = path / f"openvino-{STORED[dtype]}"
        if not (graph / "done").is_file():
            raise Unsupported("there is no graph: openvino (optimum-intel), which makes it, must be installed")
        self.model = openvino_genai.LLMPipeline(str(graph), "CPU", **properties)

    def write(self, sources: Any, tokens: int, beams: int) -> list[list[int]]:
        ids, mask = pad(sources, on_the_left=True)
        options = openvino_genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos = tokens, True
        options.do_sample = options.apply_chat_template = False
        if beams > 1:
            options.num_beams, options.num_return_sequences = beams, 1
        given = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
        return [list(row) for row in self.model.generate(given, options).tokens]
