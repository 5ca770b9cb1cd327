"""Options of generation: refusals, draws, what ends a sequence, what comes with the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_marian
from tiny_marian import CHARACTERS, EOS, PAD, VOCAB

LENGTHS = (1, 5, 17, 30, 2, 9, 40, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return maskattn.load(tiny_marian.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    rng = np.random.default_rng(8)
    return [rng.integers(3, len(VOCAB), n).tolist() for n in LENGTHS]


# Draws


def test_draws_follow_the_scores(model: Any) -> None:
    """The first token of one source, drawn many times, against its probabilities; and none that top_k leaves out."""
    many = 4000
    drawn = model.generate_ids([[5, 9]] * many, max_new_tokens=2, do_sample=True, seed=3, top_k=0, temperature=0.7)
    every = [[token] for token in range(len(VOCAB))]
    # The log-probabilities of all tokens as first ones; a padding token is out, by the generation config.
    scores = np.concatenate(model.score_ids([[5, 9]] * len(every), every)).astype(np.float64) / 0.7
    wanted = np.exp(scores) * (np.arange(len(VOCAB)) != PAD)
    wanted /= wanted.sum()
    found = np.bincount([ids[0] for ids in drawn], minlength=len(VOCAB)) / many
    assert np.abs(found - wanted).max() < 5 * np.sqrt(0.25 / many)
    best = set(np.argsort(-wanted)[:3].tolist())
    few = model.generate_ids([[5, 9]] * 200, max_new_tokens=2, do_sample=True, seed=3, top_k=3, temperature=0.7)
    assert {ids[0] for ids in few} == best


def test_a_seed_settles_the_draws_of_each_source(model: Any, sources: list[list[int]]) -> None:
    options = dict(do_sample=True, max_new_tokens=16, temperature=1.3)
    together = model.generate_ids(sources, seed=11, **options)
    assert together == model.generate_ids(sources, seed=11, batch_size=3, **options)
    assert together == model.generate_ids(sources + sources, seed=11, **options)[: len(sources)]
    assert together != model.generate_ids(sources, seed=12, **options)
    same = model.generate_ids([sources[2]] * 4, seed=11, **options)
    assert len({tuple(ids) for ids in same}) > 1, "sources have draws of their own"
    assert model.generate_ids(sources, **options) != model.generate_ids(sources, **options), "no seed, no repetition"


def test_greedy_search_is_the_limit_of_sampling(model: Any, sources: list[list[int]]) -> None:
    greedy = model.generate_ids(sources, max_new_tokens=16)
    assert greedy == model.generate_ids(sources, max_new_tokens=16, do_sample=True, top_k=1)
    assert greedy == model.generate_ids(sources, max_new_tokens=16, do_sample=True, temperature=1e-4)
    assert greedy == model.generate_ids(sources, max_new_tokens=16, temperature=9.0), "not used without do_sample"


def test_the_generation_config_applies_and_the_call_comes_first(tmp_path: Any, sources: list[list[int]]) -> None:
    settings = tiny_marian.CONFIG | {"do_sample": True, "top_k": 1, "no_repeat_ngram_size": 1, "max_length": 7}
    model = maskattn.load(tiny_marian.write(tmp_path, settings))
    plain = maskattn.load(tiny_marian.write(tmp_path / "plain"))
    # max_length counts the start token.
    assert model.generate_ids(sources) == plain.generate_ids(sources, max_new_tokens=6, no_repeat_ngram_size=1)
    assert model.generate_ids(sources, no_repeat_ngram_size=0) == plain.generate_ids(sources, max_new_tokens=6)
    beams = maskattn.load(tiny_marian.write(tmp_path / "beams", tiny_marian.CONFIG | {"num_beams": 3, "max_length": 9}))
    assert beams.generate_ids(sources) == plain.generate_ids(sources, max_new_tokens=8, num_beams=3)
    assert beams.generate_ids(sources, num_beams=1) == plain.generate_ids(sources, max_new_tokens=8)
    assert model.generate_ids(sources, max_length=5) == plain.generate_ids(
        sources, max_new_tokens=4, no_repeat_ngram_size=1
    )


# Ends


def test_stop_strings_end_a_sequence_with_the_token_that_completes_one(model: Any, sources: list[list[int]]) -> None:
    whole = model.generate_ids(sources, max_new_tokens=24)
    texts = [model.tokenizer.decode(ids) for ids in whole]
    stop = texts[3][5:8]
    assert stop, "the fourth sequence is longer"
    stopped = model.generate_ids(sources, max_new_tokens=24, stop_strings=[stop, "not in there"])
    for ids, text, all_ids in zip(stopped, texts, whole, strict=True):
        end = text.find(stop)
        assert ids == (all_ids if end < 0 else all_ids[: end + len(stop)])
    assert stopped != whole
    assert stopped == model.generate_ids(sources, max_new_tokens=24, stop_strings=stop)


def test_own_functions(model: Any, sources: list[list[int]]) -> None:
    """A processor that allows even tokens only, and a criterion that ends a sequence with its fourth token."""
    seen: list[tuple[Any, Any]] = []

    def even(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append((ids.shape, scores.shape))
        return np.where(np.arange(scores.shape[1]) % 2 == 0, scores, -np.inf)

    made = model.generate_ids(
        sources,
        max_new_tokens=24,
        logits_processor=[even],
        stopping_criteria=[lambda ids, scores: np.full(len(ids), ids.shape[1] == 5)],
    )
    assert [len(ids) for ids in made] == [4] * len(sources)
    assert all(token % 2 == 0 for ids in made for token in ids)
    assert seen[0] == ((len(sources), 1), (len(sources), len(VOCAB)))


def test_allowed_tokens_by_prefix(model: Any, sources: list[list[int]]) -> None:
    """A source's number, and its ids with the start token; forced tokens come after the constraint, as there."""
    words = [[10 + i, 20 + i, EOS] for i in range(len(sources))]
    made = model.generate_ids(
        sources, max_new_tokens=24, batch_size=3, prefix_allowed_tokens_fn=lambda i, ids: [words[i][len(ids) - 1]]
    )
    assert made == words


# Beams


def test_beams_do_not_depend_on_the_batch(model: Any, sources: list[list[int]]) -> None:
    options = dict(
        num_beams=3, max_new_tokens=12, num_return_sequences=2, prompt_ids=[[PAD, *ids[:2]] for ids in sources]
    )
    together = model.generate_ids(sources, **options)
    assert len(together) == 2 * len(sources)
    assert together == model.generate_ids(sources, batch_size=3, **options)
    assert all(a != b for a, b in zip(together[::2], together[1::2], strict=True))


def test_beams_find_what_greedy_search_misses(model: Any, sources: list[list[int]]) -> None:
    def scores(**options: Any) -> np.ndarray:
        made = model.generate_ids(
            sources, max_new_tokens=10, min_new_tokens=10, length_penalty=0.0, return_log_probabilities=True, **options
        )
        for ids, want in zip(made, model.score_ids(sources, made), strict=True):
            np.testing.assert_array_equal(ids.log_probabilities, want)
        return np.array([ids.log_probabilities.sum() for ids in made])

    assert scores(num_beams=8).sum() > scores(num_beams=1).sum() + 1


def test_beams_stop_and_bring_attention(model: Any, sources: list[list[int]]) -> None:
    best = model.generate_ids(sources, num_beams=3, max_new_tokens=12)
    stop = model.tokenizer.decode(best[3])[2:4]
    made = model.generate_ids(sources, num_beams=3, max_new_tokens=12, stop_strings=stop, return_cross_attention=True)
    texts = [model.tokenizer.decode(ids) for ids in made]
    assert any(text.endswith(stop) for text in texts)
    assert all(stop not in text[:-1] for text in texts)
    for source, ids in zip(sources, made, strict=True):
        np.testing.assert_array_equal(ids.cross_attention, model.cross_attention(source, list(ids)))


def test_a_beam_that_has_no_way_on_leaves_the_others(model: Any) -> None:
    """The best beam's tokens are all forbidden after two steps: the search goes on with what the second one wrote."""

    def block(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if ids.shape[1] == 3:
            kept.append(ids[1, 1:].tolist())
            scores[0] = -np.inf
        return scores

    kept: list[list[int]] = []
    (made,) = model.generate_ids([[5, 9]], num_beams=2, max_new_tokens=6, min_new_tokens=6, logits_processor=[block])
    assert made[:2] == kept[0]


# What comes with the tokens


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 1, "temperature": 2.0}, {"suppress_tokens": [7]}])
def test_log_probabilities_are_those_of_score_ids(
    model: Any, sources: list[list[int]], options: dict[str, Any]
) -> None:
    made = model.generate_ids(sources, max_new_tokens=16, return_log_probabilities=True, **options)
    for ids, want in zip(made, model.score_ids(sources, made), strict=True):
        assert ids.log_probabilities.dtype == np.float32
        np.testing.assert_array_equal(ids.log_probabilities, want)
    assert model.generate_ids(sources, max_new_tokens=3)[0].log_probabilities is None


def test_prompts_for_all_sources_or_for_each(model: Any, sources: list[list[int]]) -> None:
    one = model.generate_ids(sources, prompt_ids=[PAD, 5], max_new_tokens=8)
    assert one == model.generate_ids(sources, prompt_ids=[[PAD, 5]] * len(sources), max_new_tokens=8)
    prompts = [[PAD, *range(4, 5 + i)] for i in range(len(sources))]
    alone = [
        model.generate_ids([source], prompt_ids=prompt, max_new_tokens=8)[0]
        for source, prompt in zip(sources, prompts, strict=True)
    ]
    assert model.generate_ids(sources, prompt_ids=prompts, max_new_tokens=8) == alone


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temprature": 1}, TypeError, "got temprature; did you mean temperature"),
        ({"num_beams": 0}, ValueError, "num_beams must be at least 1, got 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, ValueError, "num_return_sequences must be at most num_beams, 2"),
        ({"num_return_sequences": 2}, ValueError, "num_return_sequences must be at most num_beams, 1"),
        ({"num_beams": 4, "num_return_sequences": 3, "patience": 0.5}, ValueError, "2 with this patience, got 3"),
        ({"num_beams": 2, "patience": 0}, ValueError, "patience must be a number above 0, got 0"),
        ({"num_beams": 2, "early_stopping": "now"}, ValueError, 'early_stopping must be True, False or "never"'),
        ({"num_beams": 2, "length_penalty": "x"}, TypeError, "length_penalty must be a number"),
        ({"num_beams": 2, "suppress_tokens": range(41)}, ValueError, r"got -inf as the highest for sources\[0\]"),
        (
            {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0},
            ValueError,
            "divisor of num_beams, 4, got 3",
        ),
        ({"num_beams": 4, "num_beam_groups": 2}, ValueError, "diversity_penalty must be above 0 with num_beam_groups"),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True},
            ValueError,
            "do_sample must be False with num_beam_groups above 1",
        ),
        ({"diversity_penalty": -1}, ValueError, "diversity_penalty must be a number of at least 0"),
        ({"force_words_ids": [[3]]}, ValueError, r"must come with num_beams above 1, .* got num_beams=1"),
        ({"num_beams": 2, "force_words_ids": [3]}, ValueError, "force_words_ids must be lists of token ids"),
        ({"num_beams": 2, "force_words_ids": [[]]}, ValueError, "lists of token ids, or lists of them, none empty"),
        ({"num_beams": 2, "force_words_ids": [[[3], []]]}, ValueError, "lists of token ids, or lists of them, none"),
        (
            {"num_beams": 2, "force_words_ids": [[41]]},
            ValueError,
            "must hold token ids below 41, got 41",
        ),
        ({"num_beams": 2, "constraints": [[3]]}, TypeError, "constraints must be PhrasalConstraint or Disjunctive"),
        ({"num_beams": 2, "constraints": [maskattn.PhrasalConstraint([41])]}, ValueError, "hold token ids below 41"),
        ({"penalty_alpha": 1.5}, ValueError, r"penalty_alpha must be in \[0, 1\], got 1.5"),
        ({"dola_layers": "low"}, ValueError, r"dola_layers must be None for a model with an encoder \(marian\)"),
        ({"guidance_scale": 2}, ValueError, r"guidance_scale must be None for a model with an encoder \(marian\)"),
        ({"guidance_scale": "x"}, TypeError, "guidance_scale must be a number"),
        ({"temperature": 0}, ValueError, r"temperature must be a number above 0 .*, got 0; pass another temperature"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"top_k": -1}, ValueError, "top_k must be at least 0, got -1"),
        ({"top_k": 2.5}, TypeError, "top_k must be an integer, got 2.5"),
        ({"top_p": 1.1}, ValueError, r"top_p must be in \[0, 1\], got 1.1"),
        ({"min_p": -0.1}, ValueError, r"min_p must be in \[0, 1\]"),
        ({"typical_p": 0}, ValueError, r"typical_p must be in \(0, 1\]"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty must be a number above 0"),
        ({"repetition_penalty": float("nan")}, ValueError, "repetition_penalty must be a number above 0, got nan"),
        ({"do_sample": "yes"}, TypeError, "do_sample must be True or False, got 'yes'"),
        ({"seed": -3}, ValueError, "seed must be at least 0"),
        ({"bad_words_ids": [3]}, TypeError, "bad_words_ids must be token ids"),
        ({"bad_words_ids": [[]]}, ValueError, "bad_words_ids must be lists of token ids, none empty"),
        ({"bad_words_ids": [[3, 99]]}, ValueError, "bad_words_ids must hold token ids below 41, got 99"),
        ({"sequence_bias": [[3, 1.0]]}, TypeError, "sequence_bias must be token ids"),
        ({"sequence_bias": {(3,): "x"}}, ValueError, "sequence_bias must be token ids and a number for each"),
        ({"suppress_tokens": [-1]}, ValueError, "suppress_tokens must hold token ids below 41, got -1"),
        ({"exponential_decay_length_penalty": (1,)}, ValueError, r"must be \(start, factor\)"),
        ({"stop_strings": [""]}, ValueError, "stop_strings must be texts, none empty"),
        ({"stop_strings": 3}, TypeError, "stop_strings must be a str or a list of str, got 3"),
        ({"logits_processor": [3]}, TypeError, "logits_processor must be a list of functions"),
        ({"logits_processor": [lambda ids, scores: None]}, TypeError, "logits_processor must return a float array"),
        ({"stopping_criteria": [lambda ids, scores: 1]}, TypeError, "stopping_criteria must return bools"),
        ({"prefix_allowed_tokens_fn": 3}, TypeError, "prefix_allowed_tokens_fn must be a function"),
        ({"prefix_allowed_tokens_fn": lambda i, ids: [41]}, ValueError, "must hold token ids below 41, got 41"),
        ({"prefix_allowed_tokens_fn": lambda i, ids: [0.5]}, TypeError, "prefix_allowed_tokens_fn must be token ids"),
        ({"prefix_allowed_tokens_fn": lambda i, ids: []}, ValueError, r"must allow at least one token, got none"),
        (
            {"suppress_tokens": range(41), "forced_eos_token_id": None},
            ValueError,
            r"got -inf as the highest for sources\[0\]",
        ),
        ({"suppress_tokens": range(41), "do_sample": True}, ValueError, r"got -inf as the highest for sources\[0\]"),
        ({"prompt_ids": [[3], [4]]}, ValueError, "prompt_ids must be one list of token ids or one per source, got 2"),
        ({"max_length": 1, "max_new_tokens": None}, ValueError, r"max_length, for sources\[0\], must be at least 1"),
    ],
)
def test_bad_options(model: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.generate_ids([[3]], **{"max_new_tokens": 3} | options)


def test_stop_strings_need_a_tokenizer(tmp_path: Any) -> None:
    path = tiny_marian.write(tmp_path)
    (path / "vocab.json").unlink()
    with pytest.raises(ValueError, match=r"stop_strings needs a tokenizer: vocab\.json must be in"):
        maskattn.load(path).generate_ids([[3]], stop_strings="a")


def test_generate_takes_the_options(model: Any) -> None:
    texts: Callable[..., list[str]] = model.generate
    (text,) = texts(
        ["3 march"], max_new_tokens=12, do_sample=True, seed=5, stop_strings="z", bad_words_ids=[[VOCAB["a"]]]
    )
    assert set(text) <= set(CHARACTERS) - {"a"}
