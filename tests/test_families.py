"""Every family by its own definitions, without PyTorch: a batch equals its rows, steps equal one pass; a new one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import maskattn
import tiny_families
from maskattn import masks
from maskattn.families import FAMILIES, Family, Head, Stack
from maskattn.linear import DTYPES
from tiny_families import VOCAB, WIDTH, config, write

NEW, LENGTHS = 12, (5, 1, 9, 3, 7)
WRITES = [name for name, family in FAMILIES.items() if family.decoder]
READS = [name for name, family in FAMILIES.items() if family.encoder]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sources_of(name: str, rng: np.random.Generator) -> Any:
    if name == "whisper":
        return rng.standard_normal((len(LENGTHS), 7, 33), dtype=np.float32)
    return [rng.integers(2, VOCAB, n).tolist() for n in LENGTHS]


def test_all_families_are_here() -> None:
    assert set(tiny_families.CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WRITES)
def test_generation(name: str, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """A batch writes what each source writes alone; scoring what was written says that each token was the best."""
    path, sources = write(tmp_path, config(name, eos_token_id=[1, 2, 3])), sources_of(name, rng)
    model = maskattn.load(path, dtype=dtype)
    made = model.generate_ids(sources, max_new_tokens=NEW)
    if dtype not in ("int4", "uint4"):  # which may leave one token the best everywhere
        assert len({tuple(ids) for ids in made}) > 1, "the sources must matter"
    assert made == [model.generate_ids(sources[i : i + 1], max_new_tokens=NEW)[0] for i in range(len(LENGTHS))]
    assert made == model.generate_ids(sources, max_new_tokens=NEW, batch_size=2)
    best = model.score_ids(sources, made)
    assert len({scores.tobytes() for scores in best}) > 1, "the sources must matter"
    for other in range(4, VOCAB, 7):
        changed = [[*ids[:-1], other] for ids in made]
        for scores, others in zip(best, model.score_ids(sources, changed), strict=True):
            assert others[-1] <= scores[-1] + 1e-5
            np.testing.assert_array_equal(others[:-1], scores[:-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", WRITES)
def test_narrow_weights(name: str, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """The scores are nearly those of the wide ones, but not the same."""
    path, sources = write(tmp_path, config(name)), sources_of(name, rng)
    targets = [rng.integers(2, VOCAB, 5).tolist() for _ in LENGTHS]
    wide = np.concatenate(maskattn.load(path).score_ids(sources, targets))
    narrow = np.concatenate(maskattn.load(path, dtype=dtype).score_ids(sources, targets))
    assert 0 < np.abs(narrow - wide).max() < 0.25
    assert np.abs(narrow - wide).mean() < 0.05


@pytest.mark.parametrize("name", READS)
def test_encoding(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Padding and batches change no bit."""
    model, sources = maskattn.load(write(tmp_path, config(name))), sources_of(name, rng)
    for i, hidden in enumerate(model.encode(sources)):
        assert hidden.shape == ((17 if name == "whisper" else LENGTHS[i]), WIDTH)
        np.testing.assert_array_equal(model.encode(sources[i : i + 1])[0], hidden)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_classification(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    model, sources = maskattn.load(write(tmp_path, config(name, id2label={"0": "a", "1": "b", "2": "c"}))), []
    assert model.labels == ["a", "b", "c"]
    assert model.classify(sources) == []
    sources = sources_of(name, rng)
    for length, scores in zip(LENGTHS, model.classify(sources), strict=True):
        assert scores.shape == ((length, 3) if name == "distilbert" else (3,))


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("bert", lambda m: m.generate_ids([[3]]), "needs a model that writes, got family bert.*use encode or classify"),
        ("llama", lambda m: m.encode([[3]]), "needs a model with an encoder, got family llama; use generate or score"),
        ("llama", lambda m: m.classify([[3]]), "classify must be asked of a checkpoint with a head .* llama: none"),
        ("xlm-roberta", lambda m: m.classify([[3]]), "known for xlm-roberta: ForSequenceClassification, ForToken"),
        ("distilbert", lambda m: m.pool([[3]]), "pool must be asked of a checkpoint with a pooler, got none; average"),
        ("llama", lambda m: m.generate_ids([[3]], prompt_ids=[2]), "prompt_ids must be None without an encoder"),
        ("t5", lambda m: m.generate_ids([[3]], prefix_embeddings=[]), "prefix_embeddings must be None for a model"),
        ("llama", lambda m: m.generate_ids([[3]], prefix_embeddings=[]), "one array per source, got 0 for 1 sources"),
        (
            "llama",
            lambda m: m.generate_ids([[3]], prefix_embeddings=[np.zeros((2, 9), np.float32)]),
            r"prefix_embeddings\[0\] must have shape \(n, 24\), the width of the decoder, got \(2, 9\); project",
        ),
        ("gpt2", lambda m: m.generate_ids([[3] * 60], max_new_tokens=9), r"in \[1, 5\], got 9; the model has 64"),
        ("gpt2", lambda m: m.score_ids([[3] * 60], [[4] * 9]), "at most 64 tokens together, got 68; shorten them"),
        (
            "gpt2",
            lambda m: m.cross_attention([3], [4]),
            "cross_attention needs an encoder and a decoder, got",
        ),
        (
            "whisper",
            lambda m: m.generate_ids(np.zeros((1, 7, 9), np.float32), prompt_ids=[99]),
            "got 99; use the token",
        ),
    ],
)
def test_what_a_family_cannot_do(name: str, call: Any, message: str, tmp_path: Path) -> None:
    model = maskattn.load(write(tmp_path, config(name)))
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
def test_prefix_embeddings_of_the_tokens_themselves(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """The rows of a model's own embeddings before a token are the prompt before it, seen from everywhere."""
    model = maskattn.load(write(tmp_path, config(name, sliding_window=64)))
    rows = model._forward.decoder.embed.rows(np.array([[7, 8, 9]]))[0]
    ragged = model.generate_ids([[4], [4, 5], [6]], max_new_tokens=5, prefix_embeddings=[rows[:1], rows[:0], rows])
    assert ragged[0] == model.generate_ids([[7, 4]], max_new_tokens=5)[0], "one row sees what a token sees"
    assert ragged[1] == model.generate_ids([[4, 5]], max_new_tokens=5)[0]
    assert ragged[2] == model.generate_ids([[6]], max_new_tokens=5, prefix_embeddings=[rows])[0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "opt", "gpt_neox"])
def test_the_bare_model_and_a_head_of_its_own(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Names without the base that a class with a head puts before them; a head in the file outranks the embeddings."""
    settings = config(name, tie_word_embeddings=True) | {"architectures": ["Model"]}
    whole, base = tiny_families.tensors(settings), FAMILIES[name].base
    bare = {tensor.removeprefix(base): value for tensor, value in whole.items()}
    assert set(bare) != set(whole)
    models = [maskattn.load(write(tmp_path / kind, settings, w)) for kind, w in (("whole", whole), ("bare", bare))]
    ask = (lambda m: [h.tolist() for h in m.encode([[3, 4]])]) if name == "bert" else lambda m: m.generate_ids([[3, 4]])
    assert ask(models[0]) == ask(models[1])
    if name == "bert":
        return
    head = rng.standard_normal(next(v.shape for n, v in whole.items() if "embed" in n or "wte" in n), dtype=np.float32)
    other = maskattn.load(write(tmp_path / "head", settings, whole | {"lm_head.weight": head}))
    assert ask(other) != ask(models[0])


def test_max_length_counts_the_prompt(tmp_path: Path) -> None:
    settings = config("gpt2", max_length=9, eos_token_id=None)
    model = maskattn.load(write(tmp_path, settings))
    assert [len(ids) for ids in model.generate_ids([[3], [3] * 6])] == [8, 3]
    with pytest.raises(ValueError, match=r"for sources\[1\], must be at least 1, got 0; pass max_new_tokens"):
        model.generate_ids([[3], [3] * 9])
    default = maskattn.load(write(tmp_path, config("gpt2", eos_token_id=None)))
    assert [len(ids) for ids in default.generate_ids([[3], [3] * 50])] == [20, 14]


def test_shards(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", config("llama"))
    weights = load_file(whole / "model.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_text((whole / "config.json").read_text())
    parts = [dict(list(weights.items())[i::3]) for i in range(3)]
    places = {}
    for i, part in enumerate(parts):
        save_file(part, shards / f"model-{i}.safetensors")
        places |= dict.fromkeys(part, f"model-{i}.safetensors")
    (shards / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    one, three = maskattn.load(whole), maskattn.load(shards)
    assert one.generate_ids([[3, 4], [5]]) == three.generate_ids([[3, 4], [5]])
    assert one.parameters == three.parameters == sum(value.size for value in weights.values())


# A family that nobody has heard of, declared here and nowhere else


ECHO = Family(
    name="echo",
    decoder=Stack(
        norm="rms plus one",
        placement="sandwich",
        positions="rotary",
        rope={"partial_rotary_factor": 0.5},
        activation="relu",
        gated=True,
        biases=("self.out",),
        mask=lambda config, layer: masks.Causal() & masks.SlidingWindow(left=2 + layer),
        sizes={"vocab": ("words",), "width": ("size",), "layers": ("depth",), "heads": ("heads",), "ffn": ("inner",)},
        tensors={"embed": ("words",)},
        fused={"self.qkv": "by head", "ffn.gate_up": "stacked"},
        transposed=True,
        modules={
            our: f"{{layer}}/{our}"
            for our in ("self.qkv", "self.out", "self.norm", "self.inner_norm", "ffn.gate_up", "ffn.down", "ffn.norm",
                        "ffn.inner_norm")
        }
        | {"norm": "last"},
    ),
    tied=True,
    logits_softcap=20.0,
)  # fmt: skip


def test_a_made_up_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setitem(FAMILIES, "echo", ECHO)
    settings = {"model_type": "echo", "words": 40, "size": 12, "depth": 3, "heads": 3, "inner": 20}
    model = maskattn.load(write(tmp_path, settings))
    sources = [rng.integers(0, 40, n).tolist() for n in LENGTHS]
    made = model.generate_ids(sources, max_new_tokens=NEW)
    assert made == [model.generate_ids([source], max_new_tokens=NEW)[0] for source in sources]
    assert all((np.abs(scores) < 45).all() for scores in model.score_ids(sources, made))
    assert repr(model).startswith("Model(echo, 3 layers, width 12, ")


def test_a_made_up_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(maps=(("one", "relu"), ("two", "tanh"), ("three", "linear")), per_token=True)
    monkeypatch.setitem(FAMILIES, "bert", replace(FAMILIES["bert"], classifiers={"ForThreeMaps": head}))
    model = maskattn.load(write(tmp_path, config("bert", architectures=["BertForThreeMaps"])))
    assert model.classify([[3, 4]])[0].shape == (2, 3)


def test_an_encoder_joined_to_a_decoder(tmp_path: Path) -> None:
    """The example, as it is run."""
    encoder, decoder = (str(write(tmp_path / name, config(name, eos_token_id=None))) for name in ("bert", "llama"))
    example = Path(__file__).parents[1] / "examples" / "encoder_before_decoder.py"
    said = []
    for source in ("5,9,4", "7,7,8,30"):
        command = [sys.executable, str(example), "--encoder", encoder, "--decoder", decoder, "--source", source]
        run = subprocess.run([*command, "--prompt", "2,7"], capture_output=True, text=True, check=True, timeout=60)
        said.append([int(token) for token in run.stdout.split()])
    assert [len(tokens) for tokens in said] == [20, 20]
    assert said[0] != said[1], "the source must matter"
