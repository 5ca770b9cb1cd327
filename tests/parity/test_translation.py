"""Texts through whole models: what they write, score and classify is what transformers does with the same texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("google.protobuf")

import maskattn  # noqa: E402
from maskattn.decoder.text.reading import read_tokenizer  # noqa: E402
from maskattn.families import find  # noqa: E402
from random_models import close, randomize, save  # noqa: E402
from tiny_tokenizers import JSON_FILES, OLD_FILES, write  # noqa: E402

TEXTS = ["The quick brown fox", "Decoders read what encoders wrote.", "new"]
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def translators(path: Path, kind: str, name: str, settings: dict[str, str]) -> Iterator[tuple[Any, Any]]:
    """Models with a tokenizer beside them, and transformers' tokenizer."""
    family, files = {**OLD_FILES, **JSON_FILES}[name]
    write(path, files())
    tokenizer, _ = read_tokenizer(SimpleNamespace(directory=path, config={}), find(family))  # type: ignore[arg-type]
    assert tokenizer is not None
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    ids = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2}
    ids |= {name: tokenizer.token_id(token) for name, token in settings.items()}
    config = getattr(transformers, f"{kind}Config")(vocab_size=tokenizer.vocab_size, **sizes, **heads, **ids)
    for seed in range(20):
        torch.manual_seed(seed)
        made = getattr(transformers, "MarianMTModel" if kind == "Marian" else f"{kind}ForConditionalGeneration")(config)
        randomize(made.eval(), seed)
        save(made, path)
        yield made, transformers.AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def label_scores(model: Any, tokenizer: Any, source: str, target: str) -> np.ndarray:
    batch = tokenizer(source, text_target=target, return_tensors="pt")
    scores = model(**batch).logits[0].log_softmax(-1)
    return scores[torch.arange(batch["labels"].shape[1]), batch["labels"][0]].numpy()


@pytest.mark.parametrize(
    ("kind", "name", "source", "target"),
    [
        ("MBart", "mbart 50", "en_XX", "fr_XX"),
        ("M2M100", "m2m_100", "en", "fr"),
        ("M2M100", "nllb", "eng_Latn", "fra_Latn"),
        ("M2M100", "nllb, legacy", "eng_Latn", "fra_Latn"),
        ("Marian", "marian", None, None),
    ],
)
def test_translation(kind: str, name: str, source: str | None, target: str | None, tmp_path: Path) -> None:
    marian = {"pad_token_id": "<pad>", "eos_token_id": "</s>", "decoder_start_token_id": "<pad>"}
    languages = {} if source is None else {"src_lang": source, "tgt_lang": target}
    for model, tokenizer in translators(tmp_path, kind, name, marian if kind == "Marian" else {}):
        forced = {}
        for key, value in languages.items():
            setattr(tokenizer, key, value)
        if languages:
            inputs = tokenizer._build_translation_inputs("x", return_tensors="pt", **languages)
            forced["forced_bos_token_id"] = inputs["forced_bos_token_id"]
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
        out = model.generate(**batch, **forced, max_new_tokens=20, num_beams=1, do_sample=False)
        want = tokenizer.batch_decode(out, skip_special_tokens=True)
        if len(set(want)) == len(TEXTS) and min(map(len, want)) > 4:
            break
    else:
        raise AssertionError(f"no seed under which the output varies, got {want}")
    ours = maskattn.load(tmp_path)
    assert ours.generate(TEXTS, max_new_tokens=20, **languages) == want
    if languages:
        assert ours.generate(TEXTS, max_new_tokens=20, **{**languages, "tgt_lang": None}) != want
    for scores, text in zip(ours.score(TEXTS, TEXTS[::-1], **languages), TEXTS, strict=True):
        close(scores, label_scores(model, tokenizer, text, TEXTS[::-1][TEXTS.index(text)]), 1e-3)


PAIRS = [("The quick fox", "jumps"), ("new", "Der schnelle Fuchs. We read"), ("", "x")]


@pytest.mark.parametrize("segments", [2, 3])
def test_pairs_are_classified(segments: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 60}
    config = transformers.BertConfig(vocab_size=300, **sizes, max_position_embeddings=64, type_vocab_size=segments)
    model = transformers.BertForSequenceClassification(config).eval()
    randomize(model, 1)
    save(model, write(tmp_path, OLD_FILES["bert"][1]()))
    ours, tokenizer = maskattn.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], return_tensors="pt", padding=True)
    with torch.no_grad():
        want = model(**batch).logits.numpy()
        plain = model(**{**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}).logits.numpy()
    assert np.abs(want - plain).max() > 0.01, "segments must matter"
    close(np.stack(ours.classify(PAIRS)), want, 1e-4)
    lengths = batch["attention_mask"].sum(1).tolist()
    ids, types = (
        [batch[key][i, :n].tolist() for i, n in enumerate(lengths)] for key in ("input_ids", "token_type_ids")
    )
    close(np.stack(ours.classify(ids, segments=types)), want, 1e-4)
    close(np.stack(ours.classify(ids)), plain, 1e-4)
    with torch.no_grad():
        single = model.bert(**tokenizer(TEXTS, return_tensors="pt", padding=True))
    close(ours.pool(TEXTS), single.pooler_output.numpy(), 1e-4)
    for i, hidden in enumerate(ours.encode(TEXTS)):
        close(hidden, single.last_hidden_state[i, : len(hidden)].numpy(), 1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["type_vocab_size"] == segments
