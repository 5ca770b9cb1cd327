"""Commands that need a checkpoint of their own: classify, chat, and what models says of tokenizers and templates."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_families
import tiny_tokenizers
from maskattn import cli

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def bert(path: Path, architecture: str = "BertForSequenceClassification", **settings: Any) -> str:
    labels = {"0": "bad", "1": "good", "2": "so so"}
    settings = {"vocab_size": 300, "id2label": labels, "architectures": [architecture], **settings}
    tiny_families.write(path, tiny_families.config("bert", **settings))
    return str(tiny_tokenizers.write(path, tiny_tokenizers.word_pieces()))


def llama(path: Path) -> str:
    tiny_families.write(path, tiny_families.config("llama", vocab_size=450, max_position_embeddings=500))
    files = tiny_tokenizers.llama3_json("PreTrainedTokenizerFast")
    files["tokenizer_config.json"]["chat_template"] = TEMPLATE
    return str(tiny_tokenizers.write(path, files))


def test_classify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, texts = bert(tmp_path), ["hello", "the world"]
    scores = np.stack(maskattn.load(path).classify(texts)).astype(float)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    names = np.array(["bad", "good", "so so"])[scores.argmax(axis=1)]
    want = [f"{name}\t{p.max():.4f}\t{text}" for name, p, text in zip(names, probabilities, texts, strict=True)]
    assert run(capsys, "classify", "--model", path, *texts) == want
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nthe world\n"))
    assert run(capsys, "classify", "--model", path) == want
    record = json.loads(run(capsys, "classify", "--model", path, "--json", "hello")[0])
    assert (record["text"], record["label"]) == ("hello", names[0])
    np.testing.assert_allclose(list(record["scores"].values()), probabilities[0], rtol=1e-5)


def test_classify_pairs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = bert(tmp_path)
    record = json.loads(run(capsys, "classify", "--model", path, "--json", "hello\tworld")[0])
    scores = maskattn.load(path).classify([("hello", "world")])[0]
    assert record["text"] == ["hello", "world"]
    assert record["scores"]["good"] == pytest.approx(float(np.exp(scores[1]) / np.exp(scores).sum()), rel=1e-5)
    assert cli.main(["classify", "--model", path, "hello\tworld", "hello"]) == 1
    assert "got both" in capsys.readouterr().err


def test_classify_several_labels_and_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = bert(tmp_path / "several", problem_type="multi_label_classification")
    scores = maskattn.load(path).classify(["hello"])[0]
    record = json.loads(run(capsys, "classify", "--model", path, "--json", "hello")[0])
    np.testing.assert_allclose(list(record["scores"].values()), 1 / (1 + np.exp(-scores)), rtol=1e-5)
    path = bert(tmp_path / "number", id2label={"0": "stars"}, problem_type="regression")
    scores = maskattn.load(path).classify(["hello"])[0]
    assert run(capsys, "classify", "--model", path, "hello") == [f"stars\t{scores[0]:.4f}\thello"]
    path = bert(tmp_path / "single", id2label={"0": "spam"})
    scores = maskattn.load(path).classify(["hello"])[0]
    assert run(capsys, "classify", "--model", path, "hello") == [f"spam\t{1 / (1 + np.exp(-scores[0])):.4f}\thello"]


def test_classify_tokens(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = bert(tmp_path, "BertForTokenClassification")
    model = maskattn.load(path)
    assert model.tokenizer is not None
    tokens = model.tokenizer.tokens(model.tokenizer.encode("hello world"))
    labels = [model.labels[i] for i in model.classify(["hello world"])[0].argmax(axis=1)]
    pairs = list(zip(tokens, labels, strict=True))
    assert run(capsys, "classify", "--model", path, "hello world") == [" ".join(map("/".join, pairs))]
    record = json.loads(run(capsys, "classify", "--model", path, "--json", "hello world")[0])
    assert [(token["token"], token["label"]) for token in record["tokens"]] == pairs


def test_chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = llama(tmp_path)
    model, options = maskattn.load(path), ("--model", path, "--max-new-tokens", "5")
    history = [{"role": "system", "content": "be brief"}]
    want = []
    for message in ("hi", "and then?"):
        history.append({"role": "user", "content": message})
        want.append(model.chat(history, max_new_tokens=5))
        history.append({"role": "assistant", "content": want[-1]})
    assert run(capsys, "chat", *options, "--system", "be brief", "hi", "and then?") == "\n".join(want).splitlines()
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\nand then?\n"))
    lines = run(capsys, "chat", *options, "--json", "--system", "be brief")
    assert [json.loads(line)["answer"] for line in lines] == want


def test_models_names_tokenizer_and_template(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = json.loads(run(capsys, "models", "--json", llama(tmp_path / "llama"))[0])
    assert facts["tokenizer"] == "tokenizer.json"
    assert facts["uses"] == ["generate", "score", "chat"]
    facts = json.loads(run(capsys, "models", "--json", bert(tmp_path / "bert"))[0])
    assert facts["tokenizer"] == "BertTokenizer"
    assert facts["uses"] == ["encode", "classify"]
    tiny_families.write(tmp_path / "bare", tiny_families.config("gpt2"))
    facts = json.loads(run(capsys, "models", "--json", str(tmp_path / "bare"))[0])
    assert (facts["tokenizer"], facts["uses"]) == ("none", ["generate", "score"])


@pytest.mark.parametrize("command", ["classify", "chat", "transcribe"])
def test_a_model_must_be_named(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "x"]) == 1
    assert capsys.readouterr().err.startswith("maskattn: --model must name a checkpoint of a model ")
