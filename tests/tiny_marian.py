"""A tiny Marian checkpoint with random weights and a character tokenizer, written without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CHARACTERS = " 0123456789abcdefghijklmnopqrstuvwxyz-"
VOCAB = {token: i for i, token in enumerate(("<pad>", "</s>", "<unk>", *CHARACTERS))}
PAD, EOS = 0, 1
CONFIG: dict[str, Any] = {
    "model_type": "marian",
    "vocab_size": len(VOCAB),
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 48,
    "activation_function": "swish",
    "scale_embedding": True,
    "tie_word_embeddings": False,
    "decoder_start_token_id": PAD,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "forced_eos_token_id": EOS,
    "bad_words_ids": [[PAD]],
}


def shapes(config: dict[str, Any] = CONFIG) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, as transformers saves an untied Marian with one vocabulary."""
    width, vocab = config["d_model"], config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.shared.weight": (vocab, width),
        "lm_head.weight": (vocab, width),
        "final_logits_bias": (1, vocab),
    }
    for side, blocks in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        inner = config[f"{side}_ffn_dim"]
        for layer in range(config[f"{side}_layers"]):
            start = f"model.{side}.layers.{layer}"
            maps = {f"{block}.{part}_proj": (width, width) for block in blocks for part in ("q", "k", "v", "out")}
            maps |= {"fc1": (inner, width), "fc2": (width, inner)}
            norms = [f"{block}_layer_norm" for block in blocks] + ["final_layer_norm"]
            for name, shape in (maps | {norm: (width,) for norm in norms}).items():
                found |= {f"{start}.{name}.weight": shape, f"{start}.{name}.bias": shape[:1]}
    return found


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights whose greedy output varies with the source and from step to step."""
    rng = np.random.default_rng(seed)
    spread = {"lm_head.weight": 1.0, "model.shared.weight": 0.25, "final_logits_bias": 0.1}
    made = {}
    for name, shape in shapes().items():
        fallback = 1.0 if name.endswith("norm.weight") else 0.1 if name.endswith("bias") else 0.5 * shape[-1] ** -0.5
        made[name] = (rng.standard_normal(shape) * spread.get(name, fallback)).astype(np.float32)
    made["final_logits_bias"][0, EOS] += 3  # So that some sequences end, and others go on.
    return made


def write(path: Path, config: dict[str, Any] = CONFIG, weights: dict[str, np.ndarray] | None = None) -> Path:
    """Write the checkpoint into the directory ``path`` and return it."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = {"tokenizer_class": "CharacterTokenizer", "do_lower_case": True}
    for name, content in (("config", config), ("vocab", VOCAB), ("tokenizer_config", tokenizer)):
        (path / f"{name}.json").write_text(json.dumps(content))
    save_file(tensors() if weights is None else weights, path / "model.safetensors")
    return path
