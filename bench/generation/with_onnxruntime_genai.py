"""ONNX Runtime's own generator, for the decoder-only models that its builder knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai

from bench.generation import shapes
from bench.generation.padding import pad
from bench.generation.unsupported import Unsupported

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8", "int4": "int4"}


def converted(path: Path, dtype: str) -> Path:
    return path / f"onnxruntime-genai-{dtype}"


def convert(path: Path, dtype: str) -> None:
    out = converted(path, dtype)
    if shapes.has_encoder(shapes.settings(path)):
        raise Unsupported("onnxruntime-genai's builder takes decoder-only models; see onnxruntime")
    if (out / "genai_config.json").is_file():
        return
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(path), "-o", str(out), "-e", "cpu"]
    command += ["-p", PRECISIONS[dtype], "-c", str(out / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unsupported(f"its builder says: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


class Side:
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        settings = converted(path, dtype) / "genai_config.json"
        found = json.loads(settings.read_text())
        for part in found["model"].values():
            if isinstance(part, dict) and "session_options" in part:
                part["session_options"]["intra_op_num_threads"] = threads
        settings.write_text(json.dumps(found, indent=1))
        self.model = onnxruntime_genai.Model(str(converted(path, dtype)))
        self.config = shapes.settings(path)

    def write(self, sources: Any, tokens: int, beams: int) -> list[list[int]]:
        ids, _ = pad(sources, on_the_left=True)
        params = onnxruntime_genai.GeneratorParams(self.model)
        most = ids.shape[1] + tokens
        params.set_search_options(max_length=most, batch_size=len(ids), num_beams=beams, do_sample=False)
        generator = onnxruntime_genai.Generator(self.model, params)
        generator.append_tokens(ids.astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [generator.get_sequence(i)[ids.shape[1] :].tolist() for i in range(len(ids))]
