"""OpenVINO through optimum-intel: its graphs under the search of ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optimum.intel
import torch

from bench.generation import shapes, with_transformers
from bench.generation.unsupported import Unsupported

STORED = {"float32": "float32", "bfloat16": "float32", "int8": "int8", "int4": "int4"}
FLOATS = {"float32": "f32", "bfloat16": "bf16"}


def kind_of(config: dict[str, Any]) -> Any:
    if shapes.hears(config):
        return optimum.intel.OVModelForSpeechSeq2Seq
    return optimum.intel.OVModelForSeq2SeqLM if shapes.has_encoder(config) else optimum.intel.OVModelForCausalLM


def converted(path: Path, dtype: str) -> Path:
    return path / f"openvino-{STORED[dtype]}"


def convert(path: Path, dtype: str) -> None:
    config, out = shapes.settings(path), converted(path, dtype)
    if shapes.has_encoder(config) and dtype == "int4":
        raise Unsupported("int4 is measured of decoder-only models")
    if (out / "done").is_file():
        return
    options: dict[str, Any] = {"load_in_8bit": STORED[dtype] == "int8"}
    if dtype == "int4":
        group = 64 if config["hidden_size" if "hidden_size" in config else "n_embd"] % 128 else 128
        options = {"quantization_config": optimum.intel.OVWeightQuantizationConfig(bits=4, sym=False, group_size=group)}
    if config["model_type"] == "t5":
        options["stateful"] = False  # the export of a state fails for T5 in optimum-intel 1.27
    kind_of(config).from_pretrained(path, export=True, compile=False, **options).save_pretrained(out)
    (out / "done").touch()


def properties(dtype: str, threads: int) -> dict[str, Any]:
    """Its own choice is bfloat16 where the processor has it, whatever the weights are: float32 must be asked for."""
    found = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": ""}
    if dtype in FLOATS:
        found |= {"INFERENCE_PRECISION_HINT": FLOATS[dtype], "KV_CACHE_PRECISION": FLOATS[dtype]}
    return found | ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if dtype == "float32" else {})


class Side(with_transformers.Side):
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        self.threads = threads
        super().__init__(path, dtype, threads)

    def computing(self, dtype: str) -> torch.dtype:
        return torch.float32

    def load(self, path: Path, dtype: str) -> Any:
        options = properties(dtype, self.threads)
        return kind_of(self.config).from_pretrained(converted(path, dtype), ov_config=options)
