"""Tokenizers of every kind, trained here: ids, texts and special tokens are those of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("google.protobuf")  # by which transformers reads SentencePiece models

from maskattn.decoder.text import Tokenizer  # noqa: E402
from maskattn.decoder.text.reading import read_tokenizer  # noqa: E402
from maskattn.families import find  # noqa: E402
from tiny_tokenizers import JSON_FILES, OLD_FILES, write  # noqa: E402

SPECIAL = [
    "<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>", "<|im_start|>", "<bos>",
    "<extra_id_3>", "<unk_2>", "<|begin_of_text|>", "<|0.00|>", ">>fra<<", ">>xx<<", "__en__", "de_DE", "fra_Latn",
]  # fmt: skip
WORDS = [
    "The quick",
    "brown",
    " fox",
    "doesn't it ?",
    "3rd",
    "Fuchs,",
    "ça",
    "Быстрая",
    "我们",
    "😀",
    "ﬁ½",
    "▁",
    "<0x41>",
]
texts = st.lists(st.sampled_from([*SPECIAL, *WORDS, " ", "  ", "\n", "\t"]) | st.text(max_size=8), max_size=8).map(
    "".join
)
Pair = tuple[Tokenizer, Any]


def load(directory: Path, family: str) -> Pair:
    tokenizer, problem = read_tokenizer(SimpleNamespace(directory=directory, config={}), find(family))  # type: ignore[arg-type]
    assert tokenizer is not None, problem
    return tokenizer, transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Pair]:
    """Ours and transformers', of the files that a name stands for, or of what transformers writes of those."""
    made: dict[str, dict[str, Pair]] = {}

    def get(name: str, how: str) -> Pair:
        if name not in made:
            family, files = {**OLD_FILES, **JSON_FILES}[name]
            folder, config = tmp_path_factory.mktemp("tokenizer"), {"config.json": {"model_type": family}}
            original = load(write(folder / "original", {**files(), **config}), family)
            original[1].save_pretrained(folder / "saved")
            made[name] = {"original": original, "saved": load(write(folder / "saved", config), family)}
        return made[name][how]

    return get


HOW = pytest.mark.parametrize("how", ["original", "saved"])
NAMES = pytest.mark.parametrize("name", [*OLD_FILES, *JSON_FILES])


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@HOW
@NAMES
@given(text=texts, other=texts.filter(bool))
def test_texts_as_ids(name: str, how: str, tokenizers: Callable[[str, str], Pair], text: str, other: str) -> None:
    ours, theirs = tokenizers(name, how)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode_target(text) == theirs(text_target=text)["input_ids"]
    ids, segments = ours.encode_pair(text, other)
    want = theirs(text, other, return_token_type_ids=True)
    assert ids == want["input_ids"]
    if "token_type_ids" in theirs.model_input_names:
        assert segments == want["token_type_ids"]


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@HOW
@NAMES
@given(text=texts, data=st.data())
def test_ids_as_texts(
    name: str, how: str, tokenizers: Callable[[str, str], Pair], text: str, data: st.DataObject
) -> None:
    ours, theirs = tokenizers(name, how)
    # Of two vocabularies it is the target's that makes texts; transformers calls it decoder.
    known = sorted(theirs.decoder if isinstance(theirs.decoder, dict) else theirs.get_vocab().values())
    for ids in (theirs.encode(text), data.draw(st.lists(st.sampled_from(known), max_size=20))):
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.tokens(ids) == theirs.convert_ids_to_tokens(ids)


@HOW
@NAMES
def test_the_largest_id(name: str, how: str, tokenizers: Callable[[str, str], Pair]) -> None:
    ours, theirs = tokenizers(name, how)
    languages = getattr(theirs, "lang_token_to_id", {})  # which M2M-100's own vocabulary does not count
    known = [*theirs.get_vocab().values(), *theirs.added_tokens_decoder, *languages.values()]
    assert ours.vocab_size == max(known) + 1


@pytest.mark.parametrize("name", ["mbart", "mbart 50", "m2m_100", "nllb", "nllb, legacy"])
def test_languages(name: str, tokenizers: Callable[[str, str], Pair]) -> None:
    ours, theirs = tokenizers(name, "saved")
    source, target = {"m": ("de", "fr"), "n": ("deu_Latn", "fra_Latn")}["m" if "m2m" in name else "n"]
    if name.startswith("mbart"):
        source, target = "de_DE", "fr_XX"
    before = theirs.src_lang, theirs.tgt_lang
    theirs.src_lang, theirs.tgt_lang = source, target
    assert ours.encode("The quick fox", language=source) == theirs.encode("The quick fox")
    assert ours.encode_target("Der Fuchs", language=target) == theirs(text_target="Der Fuchs")["input_ids"]
    inputs = theirs._build_translation_inputs(["x"], return_tensors="pt", src_lang=source, tgt_lang=target)
    assert ours.token_id(ours.language_token(target)) == inputs["forced_bos_token_id"]
    with pytest.raises(ValueError, match=f"src_lang and tgt_lang must be one of .*{target}.*, got 'tlh'"):
        ours.encode("x", language="tlh")
    theirs.src_lang, theirs.tgt_lang = before


def test_a_list_of_special_tokens_with_names(tmp_path: Path) -> None:
    """Tokens of a model's own kinds of input, by name, and an added token that is not special."""
    family, files = JSON_FILES["llama 3"]
    made = files()
    made["tokenizer_config.json"] |= {"image_token": "<image>", "extra_special_tokens": {"audio_token": "<audio>"}}
    made["tokenizer_config.json"]["added_tokens_decoder"] = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in [*made["tokenizer.json"]["added_tokens"], {"id": 404, "content": "<tool>", "special": False}]
    }
    ours, theirs = load(write(tmp_path, {**made, "config.json": {"model_type": family}}), family)
    text = "a<image>b <audio> <tool>c"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert json.dumps(ours.tokens(ours.encode(text))).count("<") == 4
