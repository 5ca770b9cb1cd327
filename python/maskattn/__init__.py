"""Masked attention for NumPy on the CPU, and a thin decoder that generates text with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from maskattn import _core, masks
from maskattn._core import MaskPlan
from maskattn.attention import attention, merge_states
from maskattn.bias import ALiBi, RelativeBias
from maskattn.runtime import (
    get_cmake_dir,
    get_include,
    get_precision,
    info,
    num_threads,
    runnable_isas,
    set_isa,
    set_num_threads,
    set_precision,
)
from maskattn.varlen import attention_varlen, repad, unpad
from maskattn.version import __version__
from maskattn.weights import attention_key_sums, attention_topk, attention_weights

if TYPE_CHECKING:
    from maskattn import cuda, speech
    from maskattn.alignment import draw_alignment, plot_alignment
    from maskattn.cache import KVCache
    from maskattn.decoder import (
        DecoderLayer,
        DisjunctiveConstraint,
        EncoderLayer,
        Generated,
        GenerationOptions,
        Model,
        MultiHeadAttention,
        PhrasalConstraint,
        Transcription,
        convert,
        load,
    )
    from maskattn.decoder.engine import Engine
    from maskattn.prepared import prepare

__all__ = [
    "ALiBi",
    "DecoderLayer",
    "DisjunctiveConstraint",
    "EncoderLayer",
    "Engine",
    "Generated",
    "GenerationOptions",
    "KVCache",
    "MaskPlan",
    "Model",
    "MultiHeadAttention",
    "PhrasalConstraint",
    "RelativeBias",
    "Transcription",
    "__version__",
    "attention",
    "attention_key_sums",
    "attention_topk",
    "attention_varlen",
    "attention_weights",
    "convert",
    "cuda",
    "draw_alignment",
    "get_cmake_dir",
    "get_include",
    "get_precision",
    "info",
    "load",
    "masks",
    "merge_states",
    "num_threads",
    "plot_alignment",
    "prepare",
    "repad",
    "runnable_isas",
    "set_isa",
    "set_num_threads",
    "set_precision",
    "speech",
    "unpad",
]

_core.current_isa()  # an unusable MASKATTN_ISA is an error of the import, not of the first call


if not TYPE_CHECKING:  # or any name would pass for one of ours

    def __getattr__(name: str) -> Any:
        # The cache, the decoder and what few need are imported on first use: attention alone must not pay for them.
        if name == "KVCache":
            from maskattn.cache import KVCache

            return KVCache
        if name == "Engine":
            from maskattn.decoder.engine import Engine

            return Engine
        if name == "prepare":
            from maskattn.prepared import prepare

            return prepare
        if name in ("cuda", "speech"):
            return importlib.import_module(f"maskattn.{name}")
        if name in ("draw_alignment", "plot_alignment"):
            from maskattn import alignment

            return getattr(alignment, name)
        if name in __all__:  # whatever else is public is the decoder's
            from maskattn import decoder

            return getattr(decoder, name)
        raise AttributeError(f"module 'maskattn' has no attribute {name!r}")
