"""Tiny models as GGUF files, written as llama.cpp's converter writes them, by the ``gguf`` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_OUTER = {"embed_tokens": "token_embd", "wte": "token_embd", "wpe": "position_embd", "norm": "output_norm"}
_OUTER |= {"ln_f": "output_norm", "lm_head": "output"}


def name_of(tensor: str) -> str:
    """Of a tensor of transformers, what it is called in the file."""
    path, _, kind = tensor.rpartition(".")
    parts = path.removeprefix("model.").removeprefix("transformer.").split(".")
    if parts[0] in ("layers", "h"):
        return f"blk.{parts[1]}.{_BLOCK['.'.join(parts[2:])]}.{kind}"
    return f"{_OUTER[parts[0]]}.{kind}"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    shape = heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]
    return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape))


def quantized(weight: np.ndarray, kind: Any, rng: np.random.Generator) -> np.ndarray:
    """As bytes of a type; for those that the package cannot quantise to, random blocks of it."""
    try:
        return gguf.quants.quantize(weight, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (weight.size // block, size), np.uint8)
        scales = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind.name]
        for at in scales:
            blocks[:, at : at + 2] = rng.uniform(0.0005, 0.001, (len(blocks), 1)).astype(np.float16).view(np.uint8)
        return blocks.reshape(*weight.shape[:-1], -1)


def write(
    path: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str = "F32",
    extra: Mapping[str, np.ndarray] | None = None,
    **metadata: Any,
) -> dict[str, np.ndarray]:
    """Write the file; matrices are stored as ``kind``, other tensors as F32.

    Returns:
        The tensors with the numbers that the file has, in transformers' order.
    """
    family, rng = settings["model_type"], np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, family)
    if family == "gpt2":
        keys = "n_embd", "n_layer", "n_head", "n_inner", "n_positions"
    else:
        keys = "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"
        writer.add_head_count_kv(settings["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(settings.get("rms_norm_eps", 1e-6))
        writer.add_rope_freq_base(settings.get("rope_theta", 10000.0))
        writer.add_key_length(settings["head_dim"])
        writer.add_value_length(settings["head_dim"])
        writer.add_rope_dimension_count(settings["head_dim"])
    width, layers, heads, ffn, positions = (settings[key] for key in keys)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_feed_forward_length(ffn)
    writer.add_context_length(positions)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(settings["vocab_size"])
    writer.add_eos_token_id(settings["eos_token_id"])
    for key, value in metadata.items():
        writer.add_key_value(f"{family}.{key.replace('__', '.')}", value, _type(value))
    stored = {}
    for name, tensor in tensors.items():
        transposed = family == "gpt2" and ".c_" in name and tensor.ndim == 2
        weight = np.ascontiguousarray(tensor.T if transposed else tensor, np.float32)
        rotated = {"q_proj": heads, "k_proj": settings.get("num_key_value_heads")} if family == "llama" else {}
        turn = next((count for part, count in rotated.items() if f"{part}." in name), None)
        there = weight if turn is None else permuted(weight, turn)
        chosen = gguf.GGMLQuantizationType[kind if weight.ndim == 2 and "wpe" not in name else "F32"]
        there = quantized(there, chosen, rng)
        writer.add_tensor(name_of(name), there, raw_dtype=chosen)
        back = gguf.quants.dequantize(there, chosen)
        if turn is not None:  # the other way round: two rows of a pair apart again
            shape = turn, weight.shape[0] // turn // 2, 2, *weight.shape[1:]
            back = back.reshape(shape).swapaxes(1, 2).reshape(weight.shape)
        stored[name] = np.ascontiguousarray(back.T if transposed else back)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _type(value: Any) -> Any:
    kinds = {str: "STRING", float: "FLOAT32", int: "UINT32"}
    return gguf.GGUFValueType[kinds[type(value)]]
