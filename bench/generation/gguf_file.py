"""A checkpoint as a GGUF file of float32, with the names of the ``gguf`` package; llama.cpp quantizes it further."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

from bench.generation import shapes
from bench.generation.unsupported import Unsupported

Config = dict[str, Any]


def write(path: Path, out: Path) -> None:
    config = shapes.settings(path)
    if config["model_type"] not in ARCHITECTURES:
        raise Unsupported(f"llama.cpp does not know {config['model_type']}")
    architecture, settings = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[architecture])
    layers = settings(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(architecture, layers)
    with safe_open(path / "model.safetensors", "np") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            if "coder.embed_tokens" in key:  # T5's, shared
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            array = arranged(key, file.get_tensor(key), config)
            writer.add_tensor(name, array)
            if key == "shared.weight":  # T5 scales the states before its tied head, llama.cpp does not
                writer.add_tensor("output.weight", array * np.float32(config["d_model"] ** -0.5))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def arranged(key: str, array: Any, config: Config) -> Any:
    """GPT-2 stores (in, out); Llama's rotary halves are turned into neighbours, as its files have them."""
    if config["model_type"] == "gpt2" and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return np.ascontiguousarray(array.T)
    if config["model_type"] == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in key else "num_key_value_heads"]
        halves = array.reshape(heads, 2, len(array) // heads // 2, -1)
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
    return array


def gpt2(writer: Any, config: Config) -> int:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    return config["n_layer"]


def t5(writer: Any, config: Config) -> int:
    writer.add_context_length(512)
    writer.add_embedding_length(config["d_model"])
    writer.add_block_count(config["num_layers"])
    writer.add_decoder_block_count(config["num_decoder_layers"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_decoder_start_token_id(config["decoder_start_token_id"])
    return config["num_layers"]


def llama(writer: Any, config: Config) -> int:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    return config["num_hidden_layers"]


ARCHITECTURES: dict[str, tuple[Any, Callable[[Any, Config], int]]] = {
    "gpt2": (gguf.MODEL_ARCH.GPT2, gpt2),
    "t5": (gguf.MODEL_ARCH.T5, t5),
    "llama": (gguf.MODEL_ARCH.LLAMA, llama),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, llama),
}
