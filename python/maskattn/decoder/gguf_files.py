"""GGUF files (llama.cpp): one file with weights, config and more, read by the ``gguf`` package."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.tensors import Groups, Tensor

#: What may lie beside the file and is of the same model.
_COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Architecture:
    """How the files of an architecture name what a family asks for.

    Attributes:
        family: the ``model_type``.
        keys: of config.json -> of the file's metadata, behind the architecture's name.
        outer, layer: modules in the file -> ours, of the model and of a layer.
        rotated: modules of a layer whose rows stand as llama.cpp turns them, pairs of coordinates together -> the key
            of config.json that says their heads.
    """

    family: str
    keys: Mapping[str, str]
    outer: Mapping[str, str]
    layer: Mapping[str, str]
    rotated: Mapping[str, str] = field(default_factory=dict)


_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
ARCHITECTURES = {
    "llama": Architecture(
        "llama", _KEYS, _OUTER, _LAYER, {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    ),
    "qwen2": Architecture("qwen2", _KEYS, _OUTER, _LAYER),
    "gpt2": Architecture(
        "gpt2",
        {
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_head": "attention.head_count",
            "n_inner": "feed_forward_length",
            "n_positions": "context_length",
            "layer_norm_epsilon": "attention.layer_norm_epsilon",
        },
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        {
            "attn_norm": "transformer.h.{}.ln_1",
            "attn_qkv": "transformer.h.{}.attn.c_attn",
            "attn_output": "transformer.h.{}.attn.c_proj",
            "ffn_norm": "transformer.h.{}.ln_2",
            "ffn_up": "transformer.h.{}.mlp.c_fc",
            "ffn_down": "transformer.h.{}.mlp.c_proj",
        },
    ),
}


class GgufCheckpoint(Checkpoint):
    """A GGUF file, opened. Its tokenizer is not read: texts need the tokenizer.json of the model beside it."""

    def companions(self) -> list[Path]:
        return [self.directory / name for name in _COMPANIONS if (self.directory / name).is_file()]


def open_gguf(path: Path) -> GgufCheckpoint:
    """The checkpoint in a file, its weights not read.

    Raises:
        ImportError: the ``gguf`` package is not installed.
        FileNotFoundError: no such file.
        ValueError: it is broken.
        NotImplementedError: it is of an architecture that is not known here.
    """
    package = _package("gguf")
    if not path.is_file():
        raise FileNotFoundError(f"path must be a checkpoint, got {str(path)!r}, which is not there; download it first")
    try:
        reader = package.GGUFReader(path)
        facts = {name: _value(found) for name, found in reader.fields.items()}
    except Exception as error:  # the package checks little: what a broken file raises there depends on the byte
        raise ValueError(f"{path.name} must be a GGUF file, got {error!r:.200}; download it again") from error
    name = facts.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise NotImplementedError(
            f"general.architecture of {path.name} must be {' or '.join(ARCHITECTURES)}, got {name!r:.40}, which is not "
            "implemented for GGUF; take the model as safetensors"
        )
    found = {tensor.name: tensor for tensor in reader.tensors}
    architecture = ARCHITECTURES[name]
    config = _config(path, architecture, name, facts, found)
    tensors = {tensor.name: tensor for tensor in (_tensor(path, architecture, config, each) for each in found.values())}
    tensors.pop("rope_freqs.weight", None)
    return GgufCheckpoint(path.parent, config, config, tensors)


class GgufTensor(Tensor):
    """A tensor of the file; a matrix is (outputs, inputs) for all families.

    Attributes:
        order: row of the matrix -> row of the file; rows of one head stay in their head.
    """

    oriented = True

    def __init__(self, path: Path, name: str, found: Any, heads: int) -> None:
        shape = tuple(int(extent) for extent in reversed(found.shape))
        super().__init__(name, path.name, shape, found.tensor_type.name)
        self._path, self._kind, self._start = path, found.tensor_type, int(found.data_offset)
        rows = int(np.prod(shape[:-1]))
        self._row_bytes = int(found.n_bytes) // rows if rows else 0
        self._heads = heads

    @property
    def group(self) -> int:
        return 32 if self.symmetric else 0

    @property
    def symmetric(self) -> bool:
        return self.dtype == "Q4_0"

    def groups(self, start: int, stop: int, group: int) -> Groups:
        """Of Q4_0: blocks of 32, a float16 scale and then 16 bytes, the first 16 numbers in their lower halves."""
        blocks = self._bytes(start, stop).reshape(stop - start, -1, 18)
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
        halves = blocks[..., 2:]
        q = np.concatenate([halves & 15, halves >> 4], axis=-1).reshape(stop - start, -1)
        return q, self._checked(scales), np.full(scales.shape, 8, np.float32)

    def _read(self, start: int | None, stop: int | None, transposed: bool) -> npt.NDArray[Any]:
        if len(self.shape) == 2:
            return self._numbers(self._bytes(start or 0, self.shape[0] if stop is None else stop))
        found = self._numbers(self._rows(0, 1)).reshape(self.shape)
        return found[self._order()] if self._heads else found

    def _numbers(self, stored: npt.NDArray[np.uint8]) -> FloatArray:
        try:
            found: FloatArray = _package("gguf.quants").dequantize(stored, self._kind)
        except NotImplementedError:
            raise NotImplementedError(
                f"{self.name} must be stored in a type that the gguf package can dequantise, got {self.dtype} in "
                f"{self.file}; take the file in another quantisation, such as Q4_0 or Q8_0"
            ) from None
        return found

    def _bytes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows of a matrix as they are stored, shape (rows, bytes of one)."""
        if not self._heads:
            return self._rows(start, stop)
        head_dim = self.shape[0] // self._heads
        first = start // head_dim * head_dim
        whole = self._rows(first, -(-stop // head_dim) * head_dim)
        return np.ascontiguousarray(whole[self._order()[start:stop] - first])

    def _rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        count, offset = (stop - start) * self._row_bytes, self._start + start * self._row_bytes
        return np.fromfile(self._path, np.uint8, count, offset=offset).reshape(stop - start, self._row_bytes)

    def _order(self) -> IntArray:
        """Row -> row of the file: coordinates i and i + head_dim / 2, turned together, stand there side by side."""
        pairs = np.arange(self.shape[0]).reshape(self._heads, -1, 2)
        return np.ascontiguousarray(pairs.transpose(0, 2, 1)).reshape(-1)


def _package(name: str) -> Any:
    """A module of the package, imported only now."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(
            'the package gguf must be installed to read GGUF files, got no such package; pip install "maskattn[gguf]"'
        ) from None


def _value(found: Any) -> Any:
    """What a key of the metadata holds; of long lists, such as vocabularies, only how long they are."""
    return found.contents() if len(found.data) <= 1024 else range(len(found.data))


def _tensor(path: Path, architecture: Architecture, config: Mapping[str, Any], found: Any) -> GgufTensor:
    """A tensor by our name; one that the architecture does not know keeps its own, and will be left over."""
    module, _, kind = found.name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    heads = 0
    if block and block[2] in architecture.layer:
        name = architecture.layer[block[2]].format(block[1])
        if key := architecture.rotated.get(block[2]):
            heads = _heads(path, found, config.get(key))
    else:
        name = architecture.outer.get(module, module)
    # Where an architecture has positions or embeddings as plain tables, they are called weights, too.
    return GgufTensor(path, f"{name}.{kind}", found, heads)


def _heads(path: Path, found: Any, heads: Any) -> int:
    """The heads that the rows of a tensor belong to."""
    rows = int(found.shape[-1])
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise ValueError(
            f"{found.name} of {path.name} must have an even number of rows for each head, got {rows} for {heads!r:.20} "
            "heads; download it again"
        )
    return heads


def _config(
    path: Path, architecture: Architecture, name: str, facts: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json as the family would have it.

    Raises:
        NotImplementedError: the file asks for a variant that is not implemented.
    """
    for key, values in {"expert_count": (0,), "rope.scaling.type": ("none", "linear")}.items():
        value = facts.get(f"{name}.{key}")
        if value is not None and value not in values:
            raise NotImplementedError(
                f"{name}.{key} of {path.name} must be {' or '.join(map(str, values))}, got {value!r:.40}, which is not "
                "implemented for GGUF; take the model as safetensors"
            )
    config = {key: facts[f"{name}.{there}"] for key, there in architecture.keys.items() if f"{name}.{there}" in facts}
    embeddings = tensors.get("token_embd.weight")
    config |= {
        "model_type": architecture.family,
        "vocab_size": None if embeddings is None else int(embeddings.shape[-1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
    }
    if facts.get(f"{name}.rope.scaling.type") == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": facts.get(f"{name}.rope.scaling.factor")}
    if "rope_freqs.weight" in tensors:
        config["rope_scaling"] = _divided_frequencies(
            GgufTensor(path, "rope_freqs.weight", tensors["rope_freqs.weight"], 0)
        )
    ids = {key: facts.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id", "eot_token_id")}
    ends = list(dict.fromkeys(ids[key] for key in ("eos_token_id", "eot_token_id") if ids[key] is not None))
    if ends:
        config["eos_token_id"] = ends
    if ids["bos_token_id"] is not None:
        config["bos_token_id"] = ids["bos_token_id"]
    return config


def _divided_frequencies(tensor: GgufTensor) -> dict[str, Any]:
    """Rotary frequencies divided by the numbers of a tensor, at every length (Llama 3.1's scaling, worked out)."""
    factors: Sequence[float] = tensor.float32().ravel().tolist()
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
    }
