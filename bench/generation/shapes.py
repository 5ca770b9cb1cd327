"""The models, in the shapes of real ones with random weights, and what they are asked to write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: What Whisper's decoder begins with: start of transcript, English, transcribe, no times.
SPOKEN = (50258, 50259, 50359, 50363)
S2S: dict[str, Any] = {"forced_eos_token_id": None}
#: name: class, settings of its configuration.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Marian": ("MarianMTModel", S2S | {
        "vocab_size": 58101, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "activation_function": "swish",
        "scale_embedding": True, "max_position_embeddings": 512, "static_position_embeddings": True,
        "normalize_before": False, "pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100,
    }),
    "BART-base": ("BartForConditionalGeneration", S2S | {
        "vocab_size": 50265, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
        "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "activation_function": "gelu",
        "max_position_embeddings": 1024, "normalize_before": False, "normalize_embedding": True, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_bos_token_id": None,
    }),
    "T5-small": ("T5ForConditionalGeneration", {
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    }),
    "Whisper-base": ("WhisperForConditionalGeneration", S2S | {
        "vocab_size": 51865, "num_mel_bins": 80, "encoder_layers": 6, "encoder_attention_heads": 8,
        "decoder_layers": 6, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
        "d_model": 512, "suppress_tokens": None, "begin_suppress_tokens": None, "pad_token_id": 50257,
        "bos_token_id": 50257, "eos_token_id": 50257, "decoder_start_token_id": SPOKEN[0],
    }),
    "GPT-2": ("GPT2LMHeadModel", {
        "vocab_size": 50257, "n_positions": 2048, "n_embd": 768, "n_layer": 12, "n_head": 12, "bos_token_id": 50256,
        "eos_token_id": 50256,
    }),
    "Qwen2.5-0.5B": ("Qwen2ForCausalLM", {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": 151643, "eos_token_id": 151645,
    }),
    "TinyLlama": ("LlamaForCausalLM", {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "bos_token_id": 1, "eos_token_id": 2,
    }),
}  # fmt: skip
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
RAGGED = (8, 40, 17, 96, 25, 12, 64, 33, 80, 21, 48, 10, 56, 29, 14, 72)


@dataclass(frozen=True)
class Workload:
    """What is written: ``tokens`` behind each of the sources or prompts, whose lengths are given.

    A recording has length 0: it is one window of 30 s.
    """

    name: str
    lengths: tuple[int, ...]
    tokens: int = 64
    beams: int = 1


def workloads(name: str) -> list[Workload]:
    """Those of a model: a short and a long source or prompt; Marian, whom many call so, in batches and by beams too."""
    kind = SHAPES[name][0]
    if kind.startswith("Whisper"):
        return [Workload("30 s", (0,))]
    if kind.endswith(("LMHeadModel", "ForCausalLM")):
        return [Workload("32", (32,)), Workload("1024", (1024,))]
    found = [Workload("32", (32,)), Workload("256", (256,))]
    if kind.startswith("Marian"):
        found += [Workload("batch 16", RAGGED), Workload("beam 4", (32,), beams=4)]
    return found


def settings(path: Path) -> dict[str, Any]:
    """The checkpoint's config.json."""
    found: dict[str, Any] = json.loads((path / "config.json").read_text())
    return found


def hears(config: Mapping[str, Any]) -> bool:
    return "num_mel_bins" in config


def has_encoder(config: Mapping[str, Any]) -> bool:
    return bool(config.get("is_encoder_decoder"))


def sources(config: Mapping[str, Any], lengths: tuple[int, ...], seed: int = 0) -> Any:
    """Token ids per source, or log-mel features (batch, mels, frames): the same in every process."""
    rng = np.random.default_rng([seed, len(lengths), *lengths])
    if hears(config):
        return rng.standard_normal((len(lengths), config["num_mel_bins"], 3000), dtype=np.float32)
    ordinary = np.setdiff1d(np.arange(config["vocab_size"]), special_tokens(config))
    return [rng.choice(ordinary, length).tolist() for length in lengths]


def special_tokens(config: Mapping[str, Any]) -> list[int]:
    found = {config[name] for name in SPECIAL if config.get(name) is not None}
    return sorted(found | set(range(50257, config["vocab_size"])) if hears(config) else found)


def build(name: str, root: Path) -> Path:
    """The checkpoint with random weights, made once; converters ask for its tokenizer, of words ``t0 t1 ...``."""
    path = root / name
    if (path / "tokenizer.json").is_file():
        return path
    import torch
    import transformers

    kind, given = SHAPES[name]
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    model = made(made.config_class(**given)).eval()
    config = model.config.to_dict()
    special = special_tokens(config)
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table[special] *= 0.1  # their scores never win: nobody stops early, nobody needs an option for it
            if name == "Marian":
                table[config["pad_token_id"]] = 0  # as in the real ones, on which CTranslate2 relies
    model.generation_config = transformers.GenerationConfig(**{key: config.get(key) for key in SPECIAL})
    if hears(config):
        for key, value in WHISPER_GENERATION.items():
            setattr(model.generation_config, key, value)
        transformers.WhisperFeatureExtractor(feature_size=config["num_mel_bins"]).save_pretrained(path)
    model.save_pretrained(path)
    config = settings(path)
    if "rope_parameters" in config:  # where older versions of transformers, which some peers need, look for it
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
        (path / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(config, path)
    return path


WHISPER_GENERATION = {
    "no_timestamps_token_id": SPOKEN[3],
    "alignment_heads": [[1, 0]],
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": SPOKEN[1]},
    "task_to_id": {"transcribe": SPOKEN[2], "translate": 50358},
}


def words(config: Mapping[str, Any]) -> list[str]:
    """The vocabulary: libraries that take words in place of ids get these."""
    found = [f"t{i}" for i in range(config["vocab_size"])]
    named = {"pad_token_id": "<pad>", "bos_token_id": "<s>", "eos_token_id": "</s>"}
    if hears(config):
        marks = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
        named = {"eos_token_id": "<|endoftext|>"}
        for token, mark in zip(SPOKEN, marks, strict=True):
            found[token] = mark
    for key, word in named.items():
        if config.get(key) is not None:
            found[config[key]] = word
    return found


def _write_tokenizer(config: Mapping[str, Any], path: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = words(config)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=known[100]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = known[config["eos_token_id"]]
    pad, begin = (config.get(key) for key in ("pad_token_id", "bos_token_id"))
    named = {"eos_token": end, "unk_token": known[100], "pad_token": end if pad is None else known[pad]}
    if begin is not None:
        named["bos_token"] = known[begin]
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(path)
