"""Tokenizers of every kind that checkpoints bring, trained in a moment on a few lines; with their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from maskattn.decoder.text.languages import M2M_100, NLLB

LINES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It's the 3rd of March, 2024!",
    "Der schnelle braune Fuchs springt über den faulen Hund; ça va très bien, merci.",
    "Decoders read what encoders wrote, token by token, and never look ahead.",
    "Numbers: 0 1 2 3 4 5 6 7 8 9, sums 10 + 20 = 30, code: if (x) { return y; }",
    "Быстрая лиса прыгает. 我们在这里 the end of it\nand\tanother line",
    "low lower lowest new newer newest wide wider widest show shown showing",
] * 4


def write(directory: Path, files: dict[str, Any]) -> Path:
    """JSON for what is not str or bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str | bytes) else json.dumps(content, ensure_ascii=False)
        (directory / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return directory


def byte_level(*special: str) -> dict[str, Any]:
    """vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet)
    )
    model = json.loads(tokenizer.to_str())["model"]
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    return {"vocab.json": model["vocab"], "merges.txt": f"#version: 0.2\n{merges}\n"}


def word_pieces() -> dict[str, Any]:
    """vocab.txt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    vocab = tokenizer.get_vocab()
    return {"vocab.txt": "\n".join(sorted(vocab, key=vocab.__getitem__)) + "\n"}


def sentence_pieces(kind: str = "unigram", size: int = 130, **options: Any) -> bytes:
    """A SentencePiece model: unknown, begin, end, and pad if ``pad_id`` says so."""
    from sentencepiece import SentencePieceTrainer

    made = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=made,
        vocab_size=size,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"character_coverage": 0.99, **options},
    )
    return made.getvalue()


def pieces_of(model: bytes) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def numbered(model: bytes, *special: str) -> dict[str, int]:
    """A vocab.json of another order than the model's pieces."""
    rest = [piece for piece in pieces_of(model) if piece not in special]
    return {token: i for i, token in enumerate((*special, *rest))}


def marian() -> dict[str, Any]:
    source, target = sentence_pieces(), sentence_pieces("bpe", 150)
    vocab = numbered(source, "</s>", "<unk>", ">>fra<<", ">>deu<<")
    vocab |= {piece: i for i, piece in enumerate((p for p in pieces_of(target) if p not in vocab), len(vocab))}
    return {
        "source.spm": source,
        "target.spm": target,
        "vocab.json": {**vocab, "<pad>": len(vocab)},
        "tokenizer_config.json": {"tokenizer_class": "MarianTokenizer", "source_lang": "eng", "target_lang": "roa"},
    }


def marian_two_vocabularies() -> dict[str, Any]:
    files = marian()
    vocab = numbered(files["target.spm"], "<pad>", "</s>", "<unk>")
    config = {**files["tokenizer_config.json"], "separate_vocabs": True}
    return {**files, "target_vocab.json": vocab, "tokenizer_config.json": config}


def m2m_100(*, special_languages: bool) -> dict[str, Any]:
    model = sentence_pieces()
    tokens = [f"__{code}__" for code in M2M_100.split()]
    extra = {"additional_special_tokens": tokens} if special_languages else {}
    return {
        "sentencepiece.bpe.model": model,
        "vocab.json": numbered(model, "<s>", "<pad>", "</s>", "<unk>"),
        "special_tokens_map.json": {"eos_token": "</s>", "unk_token": "<unk>", **extra},
        "tokenizer_config.json": {"tokenizer_class": "M2M100Tokenizer", "src_lang": "de", "tgt_lang": "fr"},
    }


def t5() -> dict[str, Any]:
    return {"spiece.model": sentence_pieces(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)}


def config(tokenizer_class: str, **settings: Any) -> dict[str, Any]:
    return {"tokenizer_config.json": {"tokenizer_class": tokenizer_class, **settings}}


def opt() -> dict[str, Any]:
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    return byte_level(*FAIRSEQ) | config("GPT2Tokenizer", add_bos_token=True, pad_token="<pad>", **names)


def qwen2() -> dict[str, Any]:
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    return byte_level() | config(
        "Qwen2Tokenizer",
        added_tokens_decoder={str(400 + i): token(text) for i, text in enumerate(added)},
        additional_special_tokens=added[1:],
        **names,
    )


def llama(**settings: Any) -> dict[str, Any]:
    return {"tokenizer.model": sentence_pieces("bpe", 420, byte_fallback=True)} | config("LlamaTokenizer", **settings)


def gemma() -> dict[str, Any]:
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    pieces = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    model = sentence_pieces("bpe", 420, add_dummy_prefix=False, byte_fallback=True, **ids, **pieces)
    return {"tokenizer.model": model} | config("GemmaTokenizer", add_bos_token=True)


def token(text: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": text, **plain, "special": True, **flags}


def bpe_json(vocab: dict[str, int], merges: list[Any], added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    """tokenizer.json of BPE."""
    vocab = dict(vocab)
    for entry in added:
        entry["id"] = vocab.get(entry["content"], len(vocab))
        vocab.setdefault(entry["content"], len(vocab))
    model = {"type": "BPE", "vocab": vocab, "merges": merges, **parts.pop("model", {})}
    absent = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **absent, "added_tokens": added, **parts, "model": model}


def around(before: str, i: int) -> dict[str, Any]:
    """A post-processor that puts a token in front."""
    special, text = {"SpecialToken": {"id": before, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": before, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {before: {"id": before, "ids": [i], "tokens": [before]}}
    return {"type": "TemplateProcessing", "single": [special, text], "pair": [special, text, *second]} | {
        "special_tokens": tokens
    }


def pairs_of(pieces: list[str]) -> list[tuple[str, str]]:
    """Merges that build the pieces, shortest first."""
    known = set(pieces)
    cuts = [(piece[:i], piece[i:]) for piece in pieces for i in range(1, len(piece)) if not piece.startswith("<")]
    return sorted((cut for cut in cuts if known.issuperset(cut)), key=lambda cut: len(cut[0] + cut[1]))


def llama_json(tokenizer_class: str | None) -> dict[str, Any]:
    """As transformers 4 wrote it for Llama 2."""
    pieces = pieces_of(sentence_pieces("bpe", 420, byte_fallback=True))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    text = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [text, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    file = bpe_json(
        {piece: i for i, piece in enumerate(pieces)},
        pairs_of(pieces),
        [token(text) for text in ("<unk>", "<s>", "</s>")],
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        decoder={"type": "Sequence", "decoders": steps},
        post_processor=around("<s>", 1),
        model={"fuse_unk": True, "byte_fallback": True, "unk_token": "<unk>"},
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": True}
    flags = {"add_bos_token": True, "add_eos_token": True, "legacy": False}
    return {"tokenizer.json": file} | (config(tokenizer_class, **names, **flags) if tokenizer_class else {})


def llama3_json(tokenizer_class: str) -> dict[str, Any]:
    files, bos = byte_level(), "<|begin_of_text|>"
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    file = bpe_json(
        files["vocab.json"],
        [tuple(line.split(" ")) for line in files["merges.txt"].splitlines()[1:]],
        [token(text) for text in (bos, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")],
        pre_tokenizer=level,
        decoder=level,
        post_processor={"type": "Sequence", "processors": [level, around(bos, len(files["vocab.json"]))]},
        model={"ignore_merges": True},
    )
    names = {"bos_token": bos, "eos_token": "<|eot_id|>"}
    return {"tokenizer.json": file} | config(tokenizer_class, clean_up_tokenization_spaces=True, **names)


def nllb_json(**settings: Any) -> dict[str, Any]:
    pieces = pieces_of(sentence_pieces("bpe", 200))
    vocab = {text: i for i, text in enumerate(("<s>", "<pad>", "</s>", "<unk>", *pieces[3:]))}
    added = [token(text) for text in ("<s>", "<pad>", "</s>", "<unk>", *NLLB.split())]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    file = bpe_json(
        vocab,
        pairs_of(pieces),
        [*added, token("<mask>", lstrip=True, normalized=True)],
        pre_tokenizer=metaspace,
        decoder=metaspace,
        model={"fuse_unk": True, "unk_token": "<unk>"},
    )
    return {"tokenizer.json": file} | config("NllbTokenizer", **settings)


FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WHISPER = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|notimestamps|>", "<|0.00|>", "<|0.02|>"]
#: Name -> (model_type of config.json, files), without tokenizer.json.
OLD_FILES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "gpt2": ("gpt2", lambda: byte_level("<|endoftext|>")),
    "gpt2, a space in front": (
        "gpt2",
        lambda: byte_level("<|endoftext|>") | config("GPT2Tokenizer", add_prefix_space=True),
    ),
    "opt": ("opt", lambda: opt()),
    "roberta": ("roberta", lambda: byte_level(*FAIRSEQ)),
    "bart": ("bart", lambda: byte_level(*FAIRSEQ) | config("BartTokenizer")),
    "gpt_neox": (
        "gpt_neox",
        lambda: byte_level("<|endoftext|>", "<|padding|>") | config("GPTNeoXTokenizer", add_bos_token=True),
    ),
    "qwen2": ("qwen2", lambda: qwen2()),
    "whisper": (
        "whisper",
        lambda: (
            byte_level()
            | config("WhisperTokenizer", additional_special_tokens=["<|startoftranscript|>", "<|notimestamps|>"])
            | {"added_tokens.json": {token: 400 + i for i, token in enumerate(WHISPER)}}
        ),
    ),
    "bert": ("bert", lambda: word_pieces()),
    "bert, cased": ("bert", lambda: word_pieces() | config("BertTokenizer", do_lower_case=False)),
    "distilbert": (
        "distilbert",
        lambda: word_pieces() | config("DistilBertTokenizer", clean_up_tokenization_spaces=True),
    ),
    "t5": ("t5", lambda: t5()),
    "t5, 7 sentinels": ("t5", lambda: t5() | config("T5Tokenizer", extra_ids=7)),
    "mt5": ("mt5", lambda: t5() | config("T5Tokenizer", extra_ids=0)),
    "pegasus": ("pegasus", lambda: t5()),
    "xlm-roberta": ("xlm-roberta", lambda: {"sentencepiece.bpe.model": sentence_pieces()}),
    "mbart": ("mbart", lambda: {"sentencepiece.bpe.model": sentence_pieces()} | config("MBartTokenizer")),
    "mbart 50": (
        "mbart",
        lambda: {"sentencepiece.bpe.model": sentence_pieces()} | config("MBart50Tokenizer", src_lang="de_DE"),
    ),
    "llama": ("llama", lambda: llama(add_bos_token=True, add_eos_token=False, legacy=False)),
    "llama, legacy": ("llama", lambda: llama(add_bos_token=True, add_eos_token=True, legacy=True)),
    "llama, no space in front": ("llama", lambda: llama(add_bos_token=True, add_prefix_space=False)),
    "gemma2": ("gemma2", lambda: gemma()),
    "marian": ("marian", marian),
    "marian, two vocabularies": ("marian", marian_two_vocabularies),
    "m2m_100": ("m2m_100", lambda: m2m_100(special_languages=True)),
    "m2m_100, languages in no list": ("m2m_100", lambda: m2m_100(special_languages=False)),
}
#: The same with a tokenizer.json, which some classes take as it is and of which others take the vocabulary.
JSON_FILES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    **{
        f"{family}, {name or 'no class'}": (family, partial(llama_json, name))
        for family in ("llama", "mistral", "phi3")
        for name in ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", None)
    },
    "llama 3": ("llama", lambda: llama3_json("PreTrainedTokenizerFast")),
    "llama 3 that says llama": ("llama", lambda: llama3_json("LlamaTokenizer")),
    "nllb": ("m2m_100", lambda: nllb_json()),
    "nllb, legacy": ("m2m_100", lambda: nllb_json(legacy_behaviour=True, src_lang="fra_Latn", tgt_lang="deu_Latn")),
    "nllb, listed": ("m2m_100", lambda: nllb_json(additional_special_tokens=NLLB.split())),
}
