"""The tokenizer classes of ``transformers`` 5, declared. A new one is a declaration and its row in KINDS."""

from __future__ import annotations

from dataclasses import replace

from maskattn.decoder.text import unigram
from maskattn.decoder.text.kinds import Json, Kind, Pipeline
from maskattn.decoder.text.steps import FAIRSEQ, always, byte_level, metaspace, replacement, sequence
from maskattn.decoder.text.template import Config, Template, by_flags

# Byte-level BPE: GPT-2 and its relatives.

_BYTES = Pipeline(
    model={"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False},
    pre_tokenizer=byte_level,
    decoder=lambda config: {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    files=("vocab.json", "merges.txt"),
)
_END = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_GPT2 = Kind(names=_END, pipeline=_BYTES)
_GPT_NEOX = Kind(
    names={**_END, "pad_token": "<|padding|>"},
    template=by_flags,
    pipeline=replace(_BYTES, normalizers=lambda config, rules: [{"type": "NFC"}]),
)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = Kind(
    names=dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    pipeline=replace(
        _BYTES,
        normalizers=lambda config, rules: [{"type": "NFC"}],
        pre_tokenizer=lambda config: sequence(
            "pretokenizers",
            [
                {"type": "Split", "pattern": {"Regex": _QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
                byte_level(config, use_regex=False),
            ],
        ),
    ),
)
_ROBERTA = Kind(
    names=FAIRSEQ,
    template=always("cls_token $A sep_token", "cls_token $A sep_token sep_token $B sep_token"),
    pipeline=_BYTES,
)


def _whisper(config: Config) -> Template:
    """The beginning that decoders are given: language and task if the config names them (arXiv:2212.04356, 2.3)."""
    words = ["<|startoftranscript|>"]
    words += [f"<|{config[key]}|>" for key in ("language", "task") if config.get(key)]
    words += [] if config.get("predict_timestamps") else ["<|notimestamps|>"]
    start = " ".join(words)
    return Template(f"{start} $A eos_token", f"{start} $A $B:1 eos_token:1")


_WHISPER = replace(_GPT2, template=_whisper, dropped=r"<\|\d+\.\d+\|>")

# WordPiece: BERT and its relatives.

_BERT = Kind(
    names={"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    | {"mask_token": "[MASK]"},
    template=always("cls_token $A sep_token", "cls_token $A sep_token $B:1 sep_token:1"),
    pipeline=Pipeline(
        model={"type": "WordPiece", "unk_token": "unk_token"}
        | {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        normalizers=lambda config, rules: [
            {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
                "strip_accents": config.get("strip_accents"),
                "lowercase": bool(config.get("do_lower_case", True)),
            }
        ],
        pre_tokenizer=lambda config: {"type": "BertPreTokenizer"},
        decoder=lambda config: {"type": "WordPiece", "prefix": "##", "cleanup": True},
        files=("vocab.txt",),
    ),
)

# BPE over whole texts whose spaces are pieces, bytes where there is no piece.


def _llama_words(config: Config) -> Json:
    if config.get("add_prefix_space") is False:
        return metaspace("never", split=False)
    return metaspace("always" if config.get("legacy") else "first", split=False)


def _llama_decoder(config: Config) -> Json:
    strip = [] if config.get("add_prefix_space") is False else [_STRIP]
    return sequence("decoders", [*_PIECES_TO_TEXT, *strip])


_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_PIECES_TO_TEXT = [replacement({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
_LLAMA = Kind(
    names={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    as_is=b'"ByteLevel"',
    pipeline=Pipeline(
        model={"type": "BPE", "fuse_unk": True, "byte_fallback": True},
        pre_tokenizer=_llama_words,
        decoder=_llama_decoder,
        files=("tokenizer.model",),
    ),
)
_GEMMA = Kind(
    names={"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    | {"pad_token": "<pad>", "mask_token": "<mask>"},
    pipeline=Pipeline(
        model={"type": "BPE", "unk_token": "unk_token", "fuse_unk": True, "byte_fallback": True},
        normalizers=lambda config, rules: [replacement({"String": " "}, "▁")],
        pre_tokenizer=lambda config: (
            {"type": "Split", "pattern": {"String": " "}} | {"behavior": "MergedWithPrevious", "invert": False}
        ),
        decoder=lambda config: sequence("decoders", _PIECES_TO_TEXT),
        files=("tokenizer.model",),
    ),
)

KINDS: dict[str, Kind] = {
    "BartTokenizer": _ROBERTA,
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": _GPT_NEOX,
    "GemmaTokenizer": _GEMMA,
    "LlamaTokenizer": _LLAMA,
    "M2M100Tokenizer": unigram.M2M_100,
    "MBart50Tokenizer": unigram.MBART_50,
    "MBartTokenizer": unigram.MBART,
    "MT5Tokenizer": unigram.T5,
    "MarianTokenizer": unigram.MARIAN,
    "NllbTokenizer": unigram.NLLB,
    "PegasusTokenizer": unigram.PEGASUS,
    "Qwen2Tokenizer": _QWEN2,
    "RobertaTokenizer": _ROBERTA,
    "T5Tokenizer": unigram.T5,
    "WhisperTokenizer": _WHISPER,
    "XLMRobertaTokenizer": unigram.XLM_ROBERTA,
}
