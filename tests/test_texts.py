"""Texts that models take and give: which files count, what broken, hostile or missing ones say, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_families
import tiny_tokenizers as tiny

pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")
Files = dict[str, Any]


def write(path: Path, family: str, files: Files, vocab: int = 450) -> Path:
    tiny_families.write(path, tiny_families.config(family, vocab_size=vocab, max_position_embeddings=500))
    return tiny.write(path, files)


def llama3() -> Files:
    return tiny.llama3_json("PreTrainedTokenizerFast")


def gpt2() -> Files:
    return tiny.llama3_json("GPT2Tokenizer")


def test_a_tokenizer_is_read_when_texts_come(tmp_path: Path) -> None:
    path = write(tmp_path, "llama", llama3())
    (path / "tokenizer.json").write_text("{")
    model = maskattn.load(path)
    (ids,) = model.generate_ids([[3, 4]], max_new_tokens=3)
    assert len(ids) == 3
    with pytest.raises(
        ValueError, match=r"tokenizer.json must hold what the tokenizers library can read, got .*; download it"
    ):
        model.generate(["x"])
    (path / "tokenizer.json").write_text(json.dumps(tiny.llama3_json("x")["tokenizer.json"]))
    assert model.generate(["x"], max_new_tokens=3), "once the file is whole"


@pytest.mark.parametrize(
    ("library", "family", "files"),
    [
        ("tokenizers", "llama", llama3),
        ("tokenizers", "t5", tiny.t5),
        ("sentencepiece", "marian", tiny.marian),
    ],
)
def test_a_library_is_missing(
    library: str, family: str, files: Callable[[], Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, family, files())
    monkeypatch.setitem(sys.modules, library, None)
    model = maskattn.load(path)
    assert len(model.generate_ids([[3, 4]], max_new_tokens=3)[0]) <= 3
    for ask in (lambda: model.generate(["x"]), lambda: model.score(["x"], ["y"]), lambda: model.tokenizer):
        with pytest.raises(
            ImportError, match=rf'{library} must be installed .* pip install "maskattn\[text\]", or use'
        ):
            ask()


def set_to(name: str, content: Any) -> Callable[[Files], None]:
    return lambda files: files.__setitem__(name, content)


def inside(name: str, **changes: Any) -> Callable[[Files], None]:
    return lambda files: files[name].update(changes)


def broken_rules(files: Files) -> None:
    """A field 3 that holds a field 2: rules of normalisation that are none."""
    files["spiece.model"] += b"\x1a\x06\x12\x04abcd"


def unknown_start(files: Files) -> None:
    """A panic of the library, not an exception."""
    _, template = files["tokenizer.json"]["post_processor"]["processors"]
    template["single"][0]["SpecialToken"]["id"] = template["pair"][0]["SpecialToken"]["id"] = "<nothing>"


@pytest.mark.parametrize(
    ("family", "files", "damage", "message"),
    [
        ("llama", llama3, set_to("tokenizer.json", "[1]"), "tokenizer.json must hold what the tokenizers"),
        ("llama", llama3, set_to("tokenizer.json", b"\xff\xfe"), "tokenizer.json must hold what the tok"),
        (
            "llama",
            llama3,
            set_to("tokenizer.json", {}),
            "tokenizer.json must hold what the tokenizers library can read",
        ),
        (
            "llama",
            llama3,
            inside("tokenizer.json", model={"type": "Magic"}),
            "tokenizer.json must hold what the tokeni",
        ),
        ("llama", llama3, inside("tokenizer.json", model=None), "tokenizer.json must hold what the tokenizers library"),
        ("llama", llama3, inside("tokenizer.json", added_tokens=[3]), "tokenizer.json must hold what the tokenizers"),
        ("gpt2", gpt2, set_to("tokenizer.json", b"\xff\xfe"), "tokenizer.json must be valid JSON, got .*; download it"),
        ("gpt2", gpt2, set_to("tokenizer.json", [1]), "tokenizer.json must hold a JSON object, got a list"),
        ("gpt2", gpt2, inside("tokenizer.json", added_tokens=[3]), "added_tokens of tokenizer.json must be a list of"),
        (
            "llama",
            llama3,
            inside("tokenizer.json", decoder={"type": 5}),
            "tokenizer.json must hold what the tokenizers",
        ),
        (
            "gpt2",
            gpt2,
            inside("tokenizer.json", model={"type": "BPE"}),
            "tokenizer.j",
        ),
        ("llama", llama3, set_to("tokenizer_config.json", "{"), "tokenizer_config.json must be valid JSON"),
        ("llama", llama3, inside("tokenizer_config.json", bos_token=7), "a token in tokenizer_config.json .* got 7"),
        ("llama", llama3, inside("tokenizer_config.json", added_tokens_decoder={"x": {"content": "y"}}), "a number as"),
        (
            "llama",
            llama3,
            inside("tokenizer_config.json", added_tokens_decoder={"3": 7}),
            "a token in tokenizer_config.js",
        ),
        ("llama", llama3, inside("tokenizer_config.json", tokenizer_class=[1]), "tokenizer_class in .* must be a str"),
        ("gpt2", tiny.byte_level, set_to("merges.txt", "a b\na b c\n"), "merges.txt must have two tokens a line"),
        ("gpt2", tiny.byte_level, set_to("merges.txt", b"\xff\xff"), "merges.txt must be UTF-8 text"),
        ("gpt2", tiny.byte_level, set_to("merges.txt", "zz yy\n"), "vocab.json must hold what the tokenizers"),
        ("gpt2", tiny.byte_level, set_to("vocab.json", {"a": "b"}), "vocab.json must give each token an id"),
        ("gpt2", tiny.byte_level, set_to("vocab.json", [1]), "vocab.json must hold a JSON object, got a list"),
        (
            "t5",
            tiny.t5,
            set_to("spiece.model", b"\x0a\x05abc"),
            "spiece.model must be a SentencePiece model, got a field",
        ),
        ("t5", tiny.t5, broken_rules, "spiece.model must hold what the tokenizers library can read, got Precompiled"),
        (
            "t5",
            tiny.t5,
            set_to("tokenizer_config.json", {"extra_ids": 10**9}),
            "extra_ids in .* an int in .0, 10000., got",
        ),
        ("llama", llama3, unknown_start, "tokenizer.json must hold what the tokenizers library can read, got no entry"),
        (
            "llama",
            llama3,
            set_to("tokenizer_config.json", '{"pad_token": "\\ud800"}'),
            "a token in .* must be Unicode text",
        ),
        ("t5", tiny.t5, set_to("spiece.model", b""), "spiece.model must be a SentencePiece model, got a file without"),
        (
            "t5",
            tiny.t5,
            set_to("spiece.model", b"\xff" * 40),
            "spiece.model must be a SentencePiece model, got a number",
        ),
        ("marian", tiny.marian, set_to("target.spm", b"junk"), "target.spm must be a SentencePiece model, got"),
        ("marian", tiny.marian, set_to("vocab.json", {"a": 3}), "vocab.json must have the token '<unk>', got none"),
    ],
)
def test_a_broken_file_is_named(
    family: str, files: Callable[[], Files], damage: Callable[[Files], None], message: str, tmp_path: Path
) -> None:
    made = files()
    maskattn.load(write(tmp_path / "whole", family, made)).score(["new low"], ["lower"])
    damage(made)
    with pytest.raises(ValueError, match=message):
        maskattn.load(write(tmp_path / "broken", family, made)).generate(["new low"])


def test_a_text_that_is_no_text(tmp_path: Path) -> None:
    for family, files in (("llama", llama3), ("marian", tiny.marian)):
        model = maskattn.load(write(tmp_path / family, family, files()))
        with pytest.raises(
            ValueError, match=r"texts\[1\] must be Unicode text, got '\\ud800' at 1; decode it otherwise"
        ):
            model.generate(["new", "n\ud800"])


@pytest.mark.parametrize("library", ["bert", "t5"])
def test_a_special_token_is_missing(library: str, tmp_path: Path) -> None:
    """What a class puts around texts gets an id of its own, which the model does not have."""
    files = {"bert": tiny.word_pieces, "t5": tiny.t5}[library]()
    name = {"bert": "sep_token", "t5": "eos_token"}[library]
    path, files = tmp_path / "model", files | tiny.config("", **{name: "<new>"})
    tokenizer = maskattn.load(write(path, library, files)).tokenizer
    assert tokenizer is not None
    model = maskattn.load(write(path, library, files, vocab=tokenizer.vocab_size - 1))
    with pytest.raises(ValueError, match=r"sources\[0\] must be written in tokens of the model, ids below .* '<new>'"):
        model.encode(["low"]) if library == "bert" else model.score(["low"], ["low"])


def test_a_token_that_the_model_lacks(tmp_path: Path) -> None:
    """Tokenizers may know more than a model, as long as no text needs it."""
    model = maskattn.load(write(tmp_path, "llama", llama3(), vocab=401))
    assert model.tokenizer is not None
    assert model.tokenizer.vocab_size > 401
    assert len(model.score(["new"], [" low"])) == 1
    for ask in (lambda t: model.generate([t]), lambda t: model.score(["x"], [t]), lambda t: model.score([t], ["x"])):
        with pytest.raises(
            ValueError, match=r"must be written in tokens of the model, ids below its vocab_size 401, got 40"
        ):
            ask("new <|start_header_id|>")


def test_ids_without_a_token(tmp_path: Path) -> None:
    """A model may have more rows than there are tokens: they are nothing in a text, and their numbers in a picture."""
    for family, files in (("llama", llama3), ("marian", tiny.marian)):
        tokenizer = maskattn.load(write(tmp_path / family, family, files())).tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode("new low")
        assert tokenizer.decode([*ids, 449]) == tokenizer.decode(ids)
        assert len(tokenizer.tokens([449])) == 1


def test_languages_are_refused_where_there_are_none(tmp_path: Path) -> None:
    for family, files in (("llama", llama3), ("marian", tiny.marian)):
        model = maskattn.load(write(tmp_path / family, family, files()))
        for languages in ({"src_lang": "fra"}, {"tgt_lang": "fra"}):
            with pytest.raises(
                ValueError, match="src_lang and tgt_lang must be None for a tokenizer without languages"
            ):
                model.generate(["x"], **languages)
    with pytest.raises(ValueError, match="src_lang and tgt_lang must be None"):
        maskattn.load().generate(["3 March"], tgt_lang="fr")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.classify(["a", 3]), TypeError, r"sources\[1\] must be a str, got 3"),
        (lambda m: m.classify([("a", "b"), "c"]), TypeError, r"sources\[1\] must be a pair of str like the others"),
        (lambda m: m.classify([("a", "b", "c")]), TypeError, r"sources\[0\] must be a pair of str like the others"),
        (lambda m: m.classify("a text"), TypeError, "sources must be a list of lists of token ids, got 'a text'"),
        (
            lambda m: m.classify([[2, 3]], segments=[[0]]),
            ValueError,
            r"segments must have the lengths of sources, \[2\]",
        ),
        (
            lambda m: m.classify([[2, 3]], segments=[[0, 2]]),
            ValueError,
            r"segments\[0\] must hold .* in \[0, 2\), got 2",
        ),
        (lambda m: m.generate(["a"]), ValueError, "this needs a model that writes, got family bert"),
        (
            lambda m: m.chat([{"role": "user", "content": "x"}]),
            ValueError,
            "chat_template must be in .*, got none; use",
        ),
    ],
)
def test_what_encoders_refuse(
    call: Callable[[Any], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = maskattn.load(write(tmp_path, "bert", tiny.word_pieces()))
    assert np.isfinite(model.classify([("a", "b"), ("new", "low")])).all()
    assert len(model.classify([])) == 0
    with pytest.raises(error, match=message):
        call(model)


def test_ids_are_as_checkpoints_number_them(tmp_path: Path) -> None:
    """By the papers' code, where transformers' classes number the same files otherwise; see docs/design.md."""
    names = {
        "mask_token": "<mask_2>",
        "additional_special_tokens": ["<mask_1>", *(f"<unk_{i}>" for i in range(2, 103))],
    }
    pegasus: Any = tiny.t5() | {"special_tokens_map.json": names}
    nllb: Any = {"sentencepiece.bpe.model": tiny.sentence_pieces("bpe", 200)} | tiny.config("NllbTokenizer")
    mistral: Any = {"tokenizer.model": tiny.sentence_pieces("bpe", 420, byte_fallback=True)} | tiny.config(
        "LlamaTokenizer"
    )
    pegasus, nllb, mistral = (
        maskattn.load(write(tmp_path / family, family, files, vocab=700))._texts.need()
        for family, files in (("pegasus", pegasus), ("m2m_100", nllb), ("mistral", mistral))
    )
    assert [pegasus.token_id(token) for token in ("<mask_1>", "<mask_2>", "<unk_2>", "<unk>")] == [2, 3, 4, 105]
    first, last, mask = (nllb.token_id(token) or 0 for token in ("ace_Arab", "zul_Latn", "<mask>"))
    assert (last, mask) == (first + 201, first + 202)
    assert mistral.tokens(mistral.encode("new"))[0].startswith("▁")
