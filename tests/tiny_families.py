"""A tiny checkpoint of every family with random weights, made of what the family asks for, without PyTorch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.model import Transformer
from maskattn.families import find
from maskattn.linear import PackedWeight, pack

VOCAB, WIDTH, POSITIONS = 61, 24, 64
_BART = {"d_model": WIDTH, "max_position_embeddings": POSITIONS, "decoder_start_token_id": 2, "pad_token_id": 0} | {
    f"{side}_{name}": value
    for side, values in (("encoder", (2, 4, 30)), ("decoder", (2, 2, 40)))
    for name, value in zip(("layers", "attention_heads", "ffn_dim"), values, strict=True)
}
_T5 = {"d_model": WIDTH, "num_layers": 2, "num_heads": 3, "d_kv": 10, "d_ff": 40, "decoder_start_token_id": 0}
_BERT = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31} | {
    "max_position_embeddings": POSITIONS
}
_LLAMA = _BERT | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "bart": _BART,
    "marian": _BART,
    "mbart": _BART,
    "pegasus": _BART,
    "m2m_100": _BART,
    "t5": _T5,
    "mt5": _T5,
    "whisper": _BART | {"num_mel_bins": 7, "max_source_positions": 20, "max_target_positions": POSITIONS},
    "bert": _BERT | {"architectures": ["BertForSequenceClassification"]},
    "distilbert": {"dim": WIDTH, "n_layers": 2, "n_heads": 3, "hidden_dim": 31, "max_position_embeddings": POSITIONS}
    | {"architectures": ["DistilBertForTokenClassification"]},
    "roberta": _BERT | {"architectures": ["RobertaForSequenceClassification"]},
    "xlm-roberta": _BERT,
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS},
    "gpt_neox": _BERT | {"num_attention_heads": 2, "rope_parameters": {"partial_rotary_factor": 0.5}},
    "opt": _BERT | {"ffn_dim": 33, "word_embed_proj_dim": 16},
    "llama": _LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 5000.0},
    "mistral": _LLAMA | {"sliding_window": 5},
    "qwen2": _LLAMA | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": _LLAMA,
    "gemma2": _LLAMA | {"sliding_window": 5, "attn_logit_softcapping": 2.0},
    "phi3": _LLAMA,
}


class Asked(Checkpoint):
    """Gives random numbers for whatever is asked, and keeps them by name."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self.config = config
        self.tensors: dict[str, np.ndarray] = {}
        self._seed = seed

    def names(self) -> list[str]:
        return [find(self.config["model_type"]).base]

    def find(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if not name.startswith(("lm_head", "proj_out"))), None)

    def rows(self, name: str) -> int:
        return 3

    def tensor(self, names: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
        spread = 1.0 if len(shape) == 1 and names[0].endswith("weight") else 0.7 * shape[-1] ** -0.5
        rng = np.random.default_rng([self._seed, zlib.crc32(names[0].encode())])
        return self.tensors.setdefault(names[0], (rng.standard_normal(shape) * spread).astype(np.float32))

    def packed(
        self, parts: Sequence[tuple[Sequence[str], int]], inputs: int, dtype: str, *, transposed: bool = False
    ) -> PackedWeight:
        shapes = [(inputs, outputs) if transposed else (outputs, inputs) for _, outputs in parts]
        arrays = [self.tensor(names, shape) for (names, _), shape in zip(parts, shapes, strict=True)]
        return pack(np.ascontiguousarray(np.concatenate([a.T if transposed else a for a in arrays])), dtype)

    def arranged(
        self,
        names: Sequence[str],
        shape: tuple[int, ...],
        dtype: str,
        arrange: Callable[[np.ndarray], np.ndarray],
    ) -> PackedWeight:
        return pack(arrange(self.tensor(names, shape)), dtype)

    def check_all_used(self, known: Sequence[str], unused: Sequence[str]) -> None:
        pass


def config(family: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": family, "vocab_size": VOCAB, "eos_token_id": 1, **CONFIGS[family], **changes}


def tensors(settings: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    family = find(settings["model_type"])
    asked = Asked(settings, seed)
    Transformer(family, {**family.defaults, **settings}, asked)
    return asked.tensors


def write(path: Path, settings: dict[str, Any], weights: dict[str, np.ndarray] | None = None) -> Path:
    """Write the checkpoint into the directory ``path`` and return it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    save_file(tensors(settings) if weights is None else weights, path / "model.safetensors")
    return path
