"""ONNX Runtime through optimum-onnx: its graphs under the search of ``transformers``; int8 is quantized dynamically."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM, ORTModelForSpeechSeq2Seq

from bench.generation import shapes, with_transformers
from bench.generation.unsupported import Unsupported


def kind_of(config: dict[str, Any]) -> Any:
    if shapes.hears(config):
        return ORTModelForSpeechSeq2Seq
    return ORTModelForSeq2SeqLM if shapes.has_encoder(config) else ORTModelForCausalLM


def converted(path: Path, dtype: str) -> Path:
    return path / f"onnxruntime-{dtype}"


def convert(path: Path, dtype: str) -> None:
    if dtype not in ("float32", "int8"):
        raise Unsupported(f"optimum-onnx exports no {dtype} for the CPU")
    out = converted(path, dtype)
    if (out / "done").is_file():
        return
    if dtype == "float32":
        kind_of(shapes.settings(path)).from_pretrained(path, export=True).save_pretrained(out)
    else:
        convert(path, "float32")
        quantize(converted(path, "float32"), out)
    (out / "done").touch()


def quantize(given: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.mkdir(exist_ok=True)
    for file in given.iterdir():
        if file.suffix == ".onnx":
            options: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
            options["extra_options"] = {"MatMulConstBOnly": True, "EnableSubgraph": True}
            quantize_dynamic(file, out / file.name, ["MatMul", "Gemm"], **options)
        elif file.name != "done" and not file.name.endswith("_data"):
            shutil.copy(file, out)


class Side(with_transformers.Side):
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads, self.options.inter_op_num_threads = threads, 1
        super().__init__(path, dtype, threads)

    def load(self, path: Path, dtype: str) -> Any:
        options = {"session_options": self.options, "provider": "CPUExecutionProvider"}
        return kind_of(self.config).from_pretrained(converted(path, dtype), **options)
