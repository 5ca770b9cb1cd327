"""The examples of the uses on the tiny checkpoints of examples/tiny_models.py: right, and as transformers has it.

What they are asked is held out: no training has seen it. A checkpoint is made once per session.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
from maskattn import cli  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
COUNT = 40
Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def example() -> Iterator[Callable[[str], Any]]:
    """Modules of examples/ by name."""
    folder = str(Path(__file__).parents[2] / "examples")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def checkpoint(example: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """Trains the checkpoint for a use when it is first asked for."""
    made: dict[str, Path] = {}

    def make(use: str) -> Path:
        if use not in made:
            made[use] = tmp_path_factory.mktemp(use)
            example("tiny_models").main([use, str(made[use])])
        return made[use]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(before)


@pytest.fixture
def run(example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """Runs an example with ``--json``; what it prints."""

    def call(name: str, *arguments: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        example(name).main(["--json", *map(str, arguments)])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


@pytest.fixture
def held_out(example: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Examples of a task that were kept from training."""
    data = example("toy_data")
    return lambda task: list(islice(data.draw(getattr(data, task), seed=7, held_out=True), COUNT))


@torch.no_grad()
def theirs(path: Path, sources: list[str], **settings: Any) -> list[str]:
    """What transformers writes."""
    decoder_only = (path / "chat_template.jinja").exists()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left" if decoder_only else "right")
    kind = "AutoModelForCausalLM" if decoder_only else "AutoModelForSeq2SeqLM"
    model = getattr(transformers, kind).from_pretrained(path).eval()
    inputs = tokenizer(sources, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, num_beams=1, do_sample=False, **settings)
    return list(tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] * decoder_only :], skip_special_tokens=True))


def share(got: list[str], want: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(got, want, strict=True)]))


def test_translation(run: Any, held_out: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, pairs = checkpoint("translation"), held_out("translation")
    sources = [source for source, _ in pairs]
    records = run("translate", "--model", path, "--png", tmp_path / "a.png", *sources)
    assert [record["source"] for record in records] == sources
    outputs = [record["translation"] for record in records]
    assert outputs == theirs(path, sources)
    assert share(outputs, [target for _, target in pairs]) >= 0.95
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_alignment_follows_the_words(
    example: Any, held_out: Any, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data, translate = checkpoint("translation"), example("toy_data"), example("translate")
    words = {noun.german: english for english, noun in data.OBJECTS.items()}
    words |= {german + end: english for english, german in data.ADJECTIVES.items() if german for end in ("e", "en")}
    model, hits = maskattn.load(path), []
    for text, translation in held_out("translation"):
        weights, source, target = translate.alignment(model, text, translation)
        for row, token in zip(weights, target, strict=True):
            if (english := words.get(token.strip("▁"))) is not None:
                hits.append(english in source[int(row.argmax())])
    assert len(hits) > 2 * COUNT
    assert np.mean(hits) > 0.9
    translate.main(["--model", str(path), "--picture", text])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == translation
    assert [line.split()[0] for line in printed[-len(target) :]] == target


def test_summarization(run: Any, held_out: Any, checkpoint: Checkpoint) -> None:
    path, pairs = checkpoint("summarization"), held_out("summary")
    sources = [source for source, _ in pairs]
    outputs = [record["summary"] for record in run("summarize", "--model", path, *sources)]
    assert outputs == theirs(path, sources, no_repeat_ngram_size=3)
    assert share(outputs, [target for _, target in pairs]) >= 0.95


def test_sampled_summaries(run: Any, held_out: Any, checkpoint: Checkpoint) -> None:
    path, (source, target), *_ = checkpoint("summarization"), *held_out("summary")
    drawn = ["--samples", 20, "--temperature", 2.5, "--seed", 3]
    records = run("summarize", "--model", path, *drawn, source)
    means = [record["log_probability_per_token"] for record in records]
    assert means == sorted(means, reverse=True)
    summaries = [record["summary"] for record in records]
    assert len(set(summaries)) == len(summaries) > 3
    assert run("summarize", "--model", path, *drawn, source) == records
    surer = run("summarize", "--model", path, "--samples", 20, "--temperature", 0.1, source)
    assert surer[0]["summary"] == target
    assert len(surer) < len(records)


def test_parsing(run: Any, held_out: Any, checkpoint: Checkpoint) -> None:
    path, pairs = checkpoint("parsing"), held_out("parse")
    sources = [source for source, _ in pairs]
    records = run("parse_questions", "--model", path, *sources)
    outputs = [record["query"] for record in records]
    assert outputs == theirs(path, sources)
    assert share(outputs, [target for _, target in pairs]) >= 0.95
    assert np.median([record["probability"] for record in records]) > 0.5


def test_the_right_parse_is_the_most_probable(run: Any, checkpoint: Checkpoint) -> None:
    queries = [f"select name from rivers where country = 'Peru' and length {sign} 300" for sign in "<>="]
    question = "Which rivers in Peru are longer than 300 km?"
    candidates = [word for query in queries for word in ("--candidate", query)]
    records = run("parse_questions", "--model", checkpoint("parsing"), *candidates, question)
    assert records[0]["query"] == queries[1]
    probabilities = [record["probability"] for record in records]
    assert probabilities[0] > 10 * probabilities[1] > 0


def test_sentiment_by_a_head(run: Any, held_out: Any, checkpoint: Checkpoint) -> None:
    path, pairs = checkpoint("sentiment"), held_out("sentiment")
    reviews = [review for review, _ in pairs]
    records = run("sentiment", "--model", path, *reviews)
    assert share([record["label"] for record in records], [label for _, label in pairs]) >= 0.95
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        want = model(**tokenizer(reviews, padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    got = [[record["probabilities"][label] for label in ("negative", "positive")] for record in records]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression", "one label"])
def test_the_command_reports_what_a_pipeline_does(
    problem: str | None, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint("sentiment"))
    model.config.problem_type = None if problem == "one label" else problem
    if problem == "one label":
        model.classifier = torch.nn.Linear(64, 1)
        model.config.num_labels = model.num_labels = 1
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(checkpoint("sentiment")).save_pretrained(tmp_path)
    reviews = ["the film was not bad", "what a sad coffee"]
    assert cli.main(["classify", "--model", str(tmp_path), "--json", *reviews]) == 0
    got = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
    want = transformers.pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")(reviews)
    for scores, labels in zip(got, want, strict=True):
        assert scores == pytest.approx({label["label"]: label["score"] for label in labels}, abs=1e-5)


def test_sentiment_as_t5_is_asked(run: Any, held_out: Any, checkpoint: Checkpoint) -> None:
    path, pairs, prefix = checkpoint("sentiment-t5"), held_out("sentiment"), "sst2 sentence: "
    reviews = [review for review, _ in pairs]
    records = run("sentiment", "--model", path, "--prefix", prefix, *reviews)
    labels = [record["label"] for record in records]
    assert labels == theirs(path, [prefix + review for review in reviews])
    assert share(labels, [label for _, label in pairs]) >= 0.95


def test_chat(run: Any, held_out: Any, checkpoint: Checkpoint) -> None:
    path, talks = checkpoint("chat"), held_out("chat")[:12]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    answers, right, prompts, read = [], [], [], []
    for talk in talks:
        history: list[dict[str, str]] = []
        for record, said in zip(
            run("chat", "--model", path, "--prompt", *(message["content"] for message in talk[::2])),
            (message["content"] for message in talk[1::2]),
            strict=True,
        ):
            answers.append(record["answer"])
            right.append(said)
            read.append(record["prompt"])
            history.append({"role": "user", "content": record["message"]})
            prompts.append(tokenizer.apply_chat_template(history, add_generation_prompt=True, tokenize=False))
            history.append({"role": "assistant", "content": record["answer"]})
    assert read == prompts
    assert answers == theirs(path, prompts)
    assert share(answers, right) >= 0.95


def test_chat_reads_lines_and_remembers(run: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What do people speak in Japan?\n\nAnd Peru?\n"))
    records = run("chat", "--model", checkpoint("chat"))
    assert [record["answer"] for record in records] == ["In Japan they speak Japanese.", "In Peru they speak Spanish."]


@pytest.mark.parametrize("name", ["translate", "summarize", "parse_questions", "sentiment", "chat"])
def test_without_a_model_it_says_how_to_make_one(name: str, run: Any) -> None:
    with pytest.raises(
        SystemExit, match=r"--model must name a checkpoint, got none; make a tiny one with\n *python ex"
    ):
        run(name, "anything")
