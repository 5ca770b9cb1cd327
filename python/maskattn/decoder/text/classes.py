"""The tokenizer classes of ``transformers`` 5, declared. A new one is a declaration and its row in KINDS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from maskattn.decoder.text import languages
from maskattn.decoder.text.kinds import Json, Kind, Pipeline
from maskattn.decoder.text.languages import Languages
from maskattn.decoder.text.template import Config, Template, by_flags


def _byte_level(config: Config, use_regex: bool = True) -> Json:
    prefix = bool(config.get("add_prefix_space", False))
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def _metaspace(scheme: str = "always", split: bool = True) -> Json:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def _sequence(kind: str, steps: list[Json]) -> Json:
    return {"type": "Sequence", kind: steps}


def _replace(pattern: Json, content: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _always(single: str, pair: str) -> Callable[[Config], Template]:
    return lambda config: Template(single, pair)


# Byte-level BPE: GPT-2 and its relatives.

_BYTES = Pipeline(
    model={"type": "BPE", "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False},
    pre_tokenizer=_byte_level,
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
        pre_tokenizer=lambda config: _sequence(
            "pretokenizers",
            [
                {"type": "Split", "pattern": {"Regex": _QWEN2_WORDS}, "behavior": "Isolated", "invert": False},
                _byte_level(config, use_regex=False),
            ],
        ),
    ),
)
_FAIRSEQ = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
_FAIRSEQ = {**_FAIRSEQ, "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
_ROBERTA = Kind(
    names=_FAIRSEQ,
    template=_always("cls_token $A sep_token", "cls_token $A sep_token sep_token $B sep_token"),
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
    template=_always("cls_token $A sep_token", "cls_token $A sep_token $B:1 sep_token:1"),
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

# Unigram over words that begin with a space, from SentencePiece models.

_SPACES = _replace({"Regex": " {2,}"}, " ")
_UNIGRAM = Pipeline(
    model={"type": "Unigram", "unk_id": 3, "byte_fallback": False},
    normalizers=lambda config, rules: rules,
    pre_tokenizer=lambda config: _sequence("pretokenizers", [{"type": "WhitespaceSplit"}, _metaspace()]),
    decoder=lambda config: _metaspace(),
    files=("spiece.model",),
)
_FAIRSEQ_UNIGRAM = replace(
    _UNIGRAM,
    files=("sentencepiece.bpe.model",),
    first=lambda config: ["bos_token", "pad_token", "eos_token", "unk_token"],
    skipped=3,
    last=lambda config: ["mask_token"],
)


def _sentinels(config: Config) -> list[str]:
    return [f"<extra_id_{i}>" for i in range(_count(config, "extra_ids", 100))][::-1]


def _count(config: Config, name: str, default: int) -> int:
    value = config.get(name, default)
    if not isinstance(value, int) or not 0 <= value <= _MANY:
        raise ValueError(f"{name} in tokenizer_config.json must be an int in [0, {_MANY}], got {value!r:.40}")
    return value


#: No checkpoint has so many tokens of pre-training; a file that says more would fill the memory.
_MANY = 10_000


_T5 = Kind(
    names={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    extra=_sentinels,
    template=_always("$A eos_token", "$A eos_token $B eos_token"),
    pipeline=replace(_UNIGRAM, model={**_UNIGRAM.model, "unk_id": 2}, last=_sentinels),
)


def _fillers(config: Config) -> list[str]:
    """Tokens that only pre-training used (arXiv:1912.08777)."""
    return [f"<unk_{i}>" for i in range(2, _count(config, "offset", 103))]


def _sentence_mask(config: Config) -> list[str]:
    token = config.get("mask_token_sent", "<mask_1>")
    if token is not None and not isinstance(token, str):
        raise ValueError(f"mask_token_sent in tokenizer_config.json must be a str, got {token!r:.40}; take it out")
    return [] if token is None else [token]


_PEGASUS = Kind(
    names={"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask_2>"},
    extra=lambda config: [*_sentence_mask(config), *_fillers(config)],
    template=_always("$A eos_token", "$A $B eos_token"),
    pipeline=replace(
        _UNIGRAM,
        model={**_UNIGRAM.model, "unk_id": None},
        normalizers=lambda config, rules: [*(rules or [_replace({"Regex": r"\n"}, " ")]), _SPACES],
        pre_tokenizer=lambda config: _metaspace(),
        first=lambda config: ["pad_token", "eos_token", *_sentence_mask(config), "mask_token", *_fillers(config)],
        skipped=2,
    ),
)
_XLM_ROBERTA = Kind(
    names=_FAIRSEQ,
    template=_always("bos_token $A eos_token", "bos_token $A eos_token eos_token $B eos_token"),
    pipeline=replace(
        _FAIRSEQ_UNIGRAM,
        pre_tokenizer=lambda config: _sequence("pretokenizers", [{"type": "WhitespaceSplit"}, _prefixed(config)]),
        decoder=lambda config: _prefixed(config),
    ),
)


def _prefixed(config: Config) -> Json:
    return _metaspace("always" if config.get("add_prefix_space", True) else "never")


# Translators between many languages. What differs is where the language stands, and whether the source has a default.

_MASKED: dict[str, str | Json] = {**_FAIRSEQ, "mask_token": {"content": "<mask>", "lstrip": True, "normalized": True}}
_BEFORE = Template("language $A eos_token", "language $A $B eos_token")
_BEHIND = Template("$A eos_token language", "$A $B eos_token language")
_MBART = Kind(
    names=_MASKED,
    extra=lambda config: languages.MBART.split(),
    template=lambda config: _BEHIND,
    languages=Languages("en_XX", {"": languages.MBART}),
    pipeline=replace(
        _FAIRSEQ_UNIGRAM,
        normalizers=lambda config, rules: [],
        last=lambda config: [*languages.MBART.split(), "mask_token"],
    ),
)
_MBART_50 = Kind(
    names={name: token for name, token in _MASKED.items() if name != "bos_token"},
    extra=lambda config: languages.MBART_50.split(),
    template=lambda config: _BEFORE,
    languages=Languages("en_XX", {"": languages.MBART_50}),
    pipeline=replace(
        _FAIRSEQ_UNIGRAM,
        normalizers=lambda config, rules: [*rules, _SPACES],
        pre_tokenizer=lambda config: _metaspace(),
        first=lambda config: ["cls_token", "pad_token", "eos_token", "unk_token"],
        last=lambda config: [*languages.MBART_50.split(), "mask_token"],
    ),
)
_NLLB = Kind(
    names=_MASKED,
    extra=lambda config: languages.NLLB.split(),
    template=lambda config: _BEHIND if config.get("legacy_behaviour") else _BEFORE,
    languages=Languages("eng_Latn", {"": languages.NLLB}),
    pipeline=replace(
        _FAIRSEQ_UNIGRAM,
        model={"type": "BPE", "unk_token": "unk_token", "fuse_unk": True, "byte_fallback": False},
        normalizers=lambda config, rules: [*rules, _SPACES] if rules else [],
        pre_tokenizer=lambda config: _metaspace(),
        # As the checkpoints number them; transformers' class puts the mask first where it has no tokenizer.json.
        last=lambda config: [*languages.NLLB.split(), "mask_token"],
    ),
)
_M2M_100 = Kind(
    names={name: token for name, token in _MASKED.items() if name not in ("cls_token", "mask_token")},
    template=lambda config: _BEFORE,
    languages=Languages("en", {"m2m100": languages.M2M_100, "wmt21": languages.WMT_21}, "__{}__"),
    files=("vocab.json", "sentencepiece.bpe.model"),
)
_MARIAN = Kind(
    names={"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
    template=_always("$A eos_token", "$A $B eos_token"),
    files=("vocab.json", "source.spm", "target.spm"),
    spaced=True,
)

# BPE over whole texts whose spaces are pieces, bytes where there is no piece.


def _llama_words(config: Config) -> Json:
    if config.get("add_prefix_space") is False:
        return _metaspace("never", split=False)
    return _metaspace("always" if config.get("legacy") else "first", split=False)


def _llama_decoder(config: Config) -> Json:
    strip = [] if config.get("add_prefix_space") is False else [_STRIP]
    return _sequence("decoders", [*_PIECES_TO_TEXT, *strip])


_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_PIECES_TO_TEXT = [_replace({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
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
        normalizers=lambda config, rules: [_replace({"String": " "}, "▁")],
        pre_tokenizer=lambda config: (
            {"type": "Split", "pattern": {"String": " "}} | {"behavior": "MergedWithPrevious", "invert": False}
        ),
        decoder=lambda config: _sequence("decoders", _PIECES_TO_TEXT),
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
    "M2M100Tokenizer": _M2M_100,
    "MBart50Tokenizer": _MBART_50,
    "MBartTokenizer": _MBART,
    "MT5Tokenizer": _T5,
    "MarianTokenizer": _MARIAN,
    "NllbTokenizer": _NLLB,
    "PegasusTokenizer": _PEGASUS,
    "Qwen2Tokenizer": _QWEN2,
    "RobertaTokenizer": _ROBERTA,
    "T5Tokenizer": _T5,
    "WhisperTokenizer": _WHISPER,
    "XLMRobertaTokenizer": _XLM_ROBERTA,
}
