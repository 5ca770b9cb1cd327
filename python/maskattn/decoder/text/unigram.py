"""The tokenizer classes of SentencePiece's unigram models, and of translators between many languages."""

from __future__ import annotations

from dataclasses import replace

from maskattn.decoder.text import languages
from maskattn.decoder.text.kinds import Json, Kind, Pipeline
from maskattn.decoder.text.languages import Languages
from maskattn.decoder.text.steps import FAIRSEQ, always, metaspace, replacement, sequence
from maskattn.decoder.text.template import Config, Template

# Unigram over words that begin with a space, from SentencePiece models.

_SPACES = replacement({"Regex": " {2,}"}, " ")
_UNIGRAM = Pipeline(
    model={"type": "Unigram", "unk_id": 3, "byte_fallback": False},
    normalizers=lambda config, rules: rules,
    pre_tokenizer=lambda config: sequence("pretokenizers", [{"type": "WhitespaceSplit"}, metaspace()]),
    decoder=lambda config: metaspace(),
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


T5 = Kind(
    names={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    extra=_sentinels,
    template=always("$A eos_token", "$A eos_token $B eos_token"),
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


PEGASUS = Kind(
    names={"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask_2>"},
    extra=lambda config: [*_sentence_mask(config), *_fillers(config)],
    template=always("$A eos_token", "$A $B eos_token"),
    pipeline=replace(
        _UNIGRAM,
        model={**_UNIGRAM.model, "unk_id": None},
        normalizers=lambda config, rules: [*(rules or [replacement({"Regex": r"\n"}, " ")]), _SPACES],
        pre_tokenizer=lambda config: metaspace(),
        first=lambda config: ["pad_token", "eos_token", *_sentence_mask(config), "mask_token", *_fillers(config)],
        skipped=2,
    ),
)
XLM_ROBERTA = Kind(
    names=FAIRSEQ,
    template=always("bos_token $A eos_token", "bos_token $A eos_token eos_token $B eos_token"),
    pipeline=replace(
        _FAIRSEQ_UNIGRAM,
        pre_tokenizer=lambda config: sequence("pretokenizers", [{"type": "WhitespaceSplit"}, _prefixed(config)]),
        decoder=lambda config: _prefixed(config),
    ),
)


def _prefixed(config: Config) -> Json:
    return metaspace("always" if config.get("add_prefix_space", True) else "never")


# Translators between many languages. What differs is where the language stands, and whether the source has a default.

_MASKED: dict[str, str | Json] = {**FAIRSEQ, "mask_token": {"content": "<mask>", "lstrip": True, "normalized": True}}
_BEFORE = Template("language $A eos_token", "language $A $B eos_token")
_BEHIND = Template("$A eos_token language", "$A $B eos_token language")
MBART = Kind(
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
MBART_50 = Kind(
    names={name: token for name, token in _MASKED.items() if name != "bos_token"},
    extra=lambda config: languages.MBART_50.split(),
    template=lambda config: _BEFORE,
    languages=Languages("en_XX", {"": languages.MBART_50}),
    pipeline=replace(
        _FAIRSEQ_UNIGRAM,
        normalizers=lambda config, rules: [*rules, _SPACES],
        pre_tokenizer=lambda config: metaspace(),
        first=lambda config: ["cls_token", "pad_token", "eos_token", "unk_token"],
        last=lambda config: [*languages.MBART_50.split(), "mask_token"],
    ),
)
NLLB = Kind(
    names=_MASKED,
    extra=lambda config: languages.NLLB.split(),
    template=lambda config: _BEHIND if config.get("legacy_behaviour") else _BEFORE,
    languages=Languages("eng_Latn", {"": languages.NLLB}),
    pipeline=replace(
        _FAIRSEQ_UNIGRAM,
        model={"type": "BPE", "unk_token": "unk_token", "fuse_unk": True, "byte_fallback": False},
        normalizers=lambda config, rules: [*rules, _SPACES] if rules else [],
        pre_tokenizer=lambda config: metaspace(),
        # As the checkpoints number them; transformers' class puts the mask first where it has no tokenizer.json.
        last=lambda config: [*languages.NLLB.split(), "mask_token"],
    ),
)
M2M_100 = Kind(
    names={name: token for name, token in _MASKED.items() if name not in ("cls_token", "mask_token")},
    template=lambda config: _BEFORE,
    languages=Languages("en", {"m2m100": languages.M2M_100, "wmt21": languages.WMT_21}, "__{}__"),
    files=("vocab.json", "sentencepiece.bpe.model"),
)
MARIAN = Kind(
    names={"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
    template=always("$A eos_token", "$A $B eos_token"),
    files=("vocab.json", "source.spm", "target.spm"),
    spaced=True,
)
