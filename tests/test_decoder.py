"""A loaded model against its own definitions: a batch equals its rows alone, generation equals teacher forcing."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_marian
from tiny_marian import EOS, PAD

LENGTHS = (1, 5, 17, 30, 2, 9, 40, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return maskattn.load(tiny_marian.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    rng = np.random.default_rng(8)
    return [rng.integers(3, len(tiny_marian.VOCAB), n).tolist() for n in LENGTHS]


# Generation


def test_a_batch_writes_what_each_source_writes_alone(model: Any, sources: list[list[int]]) -> None:
    together = model.generate_ids(sources, max_new_tokens=32)
    assert len({tuple(ids) for ids in together}) >= 6
    assert np.mean([len(set(ids)) for ids in together]) >= 5
    assert len({len(ids) for ids in together}) > 1, "some sequence must leave the batch before the others"
    assert together == [model.generate_ids([source], max_new_tokens=32)[0] for source in sources]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_batch_size_changes_nothing_and_progress_ends_at_the_total(
    model: Any, sources: list[list[int]], batch_size: int
) -> None:
    calls: list[tuple[int, int]] = []
    made = model.generate_ids(
        sources, max_new_tokens=20, batch_size=batch_size, progress=lambda *call: calls.append(call)
    )
    assert made == model.generate_ids(sources, max_new_tokens=20)
    assert calls[-1] == (8, 8)
    assert len(calls) == math.ceil(8 / batch_size)


def test_new_tokens_end_with_the_end_token(model: Any, sources: list[list[int]]) -> None:
    for ids in model.generate_ids(sources, max_new_tokens=12):
        assert ids.index(EOS) == len(ids) - 1, "forced at the last step, and nothing behind it"
        assert PAD not in ids
        assert len(ids) <= 12


def test_generation_config_outranks_config(model: Any, sources: list[list[int]], tmp_path: Path) -> None:
    tiny_marian.write(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 20, "max_new_tokens": 6}')
    other = maskattn.load(tmp_path)
    assert other.generate_ids(sources) != [ids[:6] for ids in model.generate_ids(sources)]
    assert {len(ids) for ids in other.generate_ids(sources)} == {6}, "there is no end token in that file"
    hidden = other._forward.decode(np.array([[20]]), other._forward.encode([np.array(sources[2])]))
    assert other.generate_ids(sources[2:3])[0][0] == other._forward.logits(hidden).argmax()


def test_default_length_is_that_of_transformers(model: Any, sources: list[list[int]], tmp_path: Path) -> None:
    longest = max(len(ids) for ids in model.generate_ids(sources))
    assert longest == 20
    limited = maskattn.load(tiny_marian.write(tmp_path, tiny_marian.CONFIG | {"max_length": 9}))
    assert max(len(ids) for ids in limited.generate_ids(sources)) == 8, "max_length counts the start token"
    far = maskattn.load(tiny_marian.write(tmp_path, tiny_marian.CONFIG | {"max_length": 512, "eos_token_id": None}))
    assert {len(ids) for ids in far.generate_ids(sources)} == {48}, "never more than there are positions"


def test_no_source_no_work(model: Any) -> None:
    assert model.generate([]) == model.generate_ids([]) == model.score_ids([], []) == []


def test_numpy_ids(model: Any, sources: list[list[int]]) -> None:
    arrays = [np.array(source, np.int32) for source in sources]
    assert model.generate_ids(arrays, max_new_tokens=8) == model.generate_ids(sources, max_new_tokens=8)


# Teacher forcing


def test_scores_are_those_of_stepwise_decoding(model: Any, sources: list[list[int]]) -> None:
    """One pass under the look-ahead mask, ragged and padded, equals one token at a time with the cache."""
    rng = np.random.default_rng(4)
    targets = [rng.integers(0, len(tiny_marian.VOCAB), n).tolist() for n in (4, 48, 1, 7, 35, 2, 20, 3)]
    forward = model._forward
    for source, target, scores in zip(sources, targets, model.score_ids(sources, targets), strict=True):
        memory, cache = forward.encode([np.array(source)]), forward.new_cache(1)
        assert scores.dtype == np.float32
        for token, previous, score in zip(target, [PAD, *target[:-1]], scores, strict=True):
            logits = forward.logits(forward.decode(np.array([[previous]]), memory, cache))[0, 0].astype(float)
            assert score == pytest.approx(logits[token] - np.log(np.exp(logits).sum()), abs=2e-5)


def test_generated_tokens_are_the_most_probable(model: Any, sources: list[list[int]]) -> None:
    """Scoring a target with one token changed never finds the other token more probable in its place."""
    made = model.generate_ids(sources, max_new_tokens=12)
    places = [(i, t) for i, ids in enumerate(made) for t in range(len(ids) - 1)]  # The last may have been forced.
    best = model.score_ids(sources, made)
    for other in (3, 11, 25, 38):
        others = model.score_ids([sources[i] for i, _ in places], [[*made[i][:t], other] for i, t in places])
        assert all(values[-1] <= best[i][t] + 1e-5 for values, (i, t) in zip(others, places, strict=True))


def test_score_batches_keep_their_order(model: Any, sources: list[list[int]]) -> None:
    targets = [source[::-1] for source in sources]
    alone = [model.score_ids([s], [t])[0] for s, t in zip(sources, targets, strict=True)]
    for got, want in zip(model.score_ids(sources, targets, batch_size=3), alone, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_cross_attention(model: Any, sources: list[list[int]]) -> None:
    weights = model.cross_attention(sources[2], [5, 6, 7, EOS])
    assert weights.shape == (2, 4, 4, 17)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-5)
    # The first two rows do not depend on later targets: the look-ahead mask.
    np.testing.assert_allclose(weights[:, :, :2], model.cross_attention(sources[2], [5, 9]), rtol=0, atol=1e-5)


# Text


def test_texts_are_the_ids_between_two_tokenizations(model: Any) -> None:
    texts = ["3 March 2024", "x", "  March 3RD  "]
    ids = model.generate_ids([model.tokenizer.encode(text) for text in texts], max_new_tokens=10)
    assert model.generate(texts, max_new_tokens=10) == [model.tokenizer.decode(row) for row in ids]
    scores = model.score(texts, ["2024-03-03", "1", ""])
    assert [len(row) for row in scores] == [11, 2, 1]


def test_embedded_default() -> None:
    model = maskattn.load()
    texts = ["3rd of March, 2024", "2024-03-03"]
    assert model.generate(texts) == ["2024-03-03"] * 2
    assert float(np.exp(model.score(texts[:1], ["2024-03-03"])[0].sum())) > 0.5


def test_repr_tells_the_size(model: Any) -> None:
    count = sum(tensor.size for tensor in tiny_marian.tensors().values())
    assert repr(model) == f"Model(marian, 2+2 layers, width 16, {count:,} parameters)"


# Arguments


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate("3 March"), TypeError, r"texts must be a list of str, got one str; pass \['3 March'\]"),
        (lambda m: m.generate(["a", 3]), TypeError, r"texts\[1\] must be a str, got 3 \(int\)"),
        (lambda m: m.generate(7), TypeError, "texts must be a list of str, got 7"),
        (lambda m: m.generate(["a" * 48]), ValueError, r"sources\[0\] must have at most 48 tokens, got 49"),
        (lambda m: m.generate_ids("abc"), TypeError, "sources must be a list of lists"),
        (lambda m: m.generate_ids([3, 4]), TypeError, r"sources\[0\] must be a list of token ids, got 3 \(int\)"),
        (lambda m: m.generate_ids(["abc"]), TypeError, r"sources\[0\] must be a list of token ids"),
        (lambda m: m.generate_ids([[3], []]), ValueError, r"sources\[1\] must hold at least one token id"),
        (lambda m: m.generate_ids([[3, 0.5]]), TypeError, r"sources\[0\] must hold integers, got \[3, 0.5\]"),
        (lambda m: m.generate_ids([[True]]), TypeError, r"sources\[0\] must hold integers"),
        (lambda m: m.generate_ids([np.ones((2, 2), int)]), TypeError, r"sources\[0\] must hold integers"),
        (lambda m: m.generate_ids([[3, 41]]), ValueError, r"sources\[0\] must hold token ids in \[0, 41\), got 41"),
        (lambda m: m.generate_ids([[-1, 3]]), ValueError, r"token ids in \[0, 41\), got -1; use the tokenizer"),
        (lambda m: m.generate_ids([[3]], max_new_tokens=0), ValueError, r"max_new_tokens must be in \[1, 48\], got 0"),
        (lambda m: m.generate_ids([[3]], max_new_tokens=49), ValueError, "got 49; the model has 48 positions"),
        (lambda m: m.generate_ids([[3]], max_new_tokens=2.0), TypeError, r"max_new_tokens must be an int, got 2.0"),
        (lambda m: m.generate_ids([[3]], batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda m: m.generate_ids([], max_new_tokens=0), ValueError, "max_new_tokens"),
        (lambda m: m.score_ids([[3]], [[4], [5]]), ValueError, "targets must have one entry per source, got 2 for 1"),
        (lambda m: m.score_ids([[3]], [[99]]), ValueError, r"targets\[0\] must hold token ids in \[0, 41\), got 99"),
        (lambda m: m.score("a", ["b"]), TypeError, "sources must be a list of str, got one str"),
        (lambda m: m.cross_attention([[3]], [4]), TypeError, r"source_ids\[0\] must hold integers"),
        (lambda m: maskattn.load(dtype="int3"), ValueError, "dtype must be one of float32, .*, uint4, got 'int3'"),
        (lambda m: maskattn.load(3), TypeError, "path must be a str or a path, got int"),
    ],
)
def test_bad_arguments(model: Any, call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("guidance_scale", ValueError, r"guidance_scale must be None for a model with an encoder \(marian\), got 3"),
        ("penalty_alpha", ValueError, "penalty_alpha must be"),
        ("watermarking_config", NotImplementedError, "watermarking_config must be off in the generation config, got 3"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    setting: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = maskattn.load(tiny_marian.write(tmp_path, tiny_marian.CONFIG | {setting: 3}))
    with pytest.raises(error, match=message):
        model.generate_ids([[3]])
    assert model.score_ids([[3]], [[4]])[0].shape == (1,), "scores don't depend on it"


def test_a_device_needs_a_build_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "maskattn._cuda", None)
    with pytest.raises(
        ImportError,
        match=r"^device must be None, as .* without CUDA, got 'cuda'; build it with nvcc 12.4 or newer \(pip",
    ):
        maskattn.load(tmp_path, device="cuda")
    with pytest.raises(ValueError, match='device must be "cuda" or "cuda:" and a number, got \'tpu\''):
        maskattn.load(tmp_path, device="tpu")
