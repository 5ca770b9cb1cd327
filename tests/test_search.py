"""Ways to search: a source's tokens do not depend on its batch; draws, patience, constraints, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn.decoder.phrases import ConstraintState
from tiny_families import POSITIONS, VOCAB, config, write

WAYS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "patient": {"num_beams": 3, "patience": 2.0, "early_stopping": True},
    "drawn beams": {"num_beams": 3, "do_sample": True, "seed": 5, "temperature": 3.0},
    "draws": {"do_sample": True, "seed": 5, "num_return_sequences": 3, "temperature": 2.0},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 4},
    "constrained": {"num_beams": 4, "force_words_ids": [[20, 21], [[30], [31, 32]]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 4},
    "dola": {"dola_layers": "low"},
    "guided": {"guidance_scale": 2.0},
    "guided beams": {"guidance_scale": 2.0, "num_beams": 3},
    "guided contrastive": {"guidance_scale": 2.0, "penalty_alpha": 0.5, "top_k": 4},
}
LIMITED: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": list(range(1, VOCAB, 12))}


@pytest.fixture(scope="module", params=["t5", "gpt2", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return maskattn.load(write(tmp_path_factory.mktemp("tiny"), config(request.param)))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return maskattn.load(write(tmp_path_factory.mktemp("tiny"), config("gpt2")))


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(3, VOCAB, n).tolist() for n in (1, 9, 17, 4)]


@pytest.mark.parametrize("way", WAYS)
def test_alone_as_in_a_batch(model: Any, sources: list[list[int]], way: str) -> None:
    options = {**WAYS[way], **LIMITED}
    if model.family.encoder is not None and ("dola" in way or "guided" in way):
        with pytest.raises(ValueError, match="must be None for a model with an encoder"):
            model.generate_ids(sources, **options)
        return
    together = model.generate_ids(sources, return_log_probabilities=True, **options)
    each = options.get("num_return_sequences", 1)
    assert len(together) == each * len(sources)
    assert together == model.generate_ids(sources, batch_size=3, **options)
    if not options.get("do_sample"):  # the second source alone would have the draws of the first
        assert together == [ids for source in sources for ids in model.generate_ids([source], **options)]
    else:
        assert together[:each] == model.generate_ids(sources[:1], **options)
        assert together != model.generate_ids(sources, **{**options, "seed": 6})
    many = [source for source in sources for _ in range(each)]
    for ids, want in zip(together, model.score_ids(many, together), strict=True):
        np.testing.assert_array_equal(ids.log_probabilities, want)
        assert (ids.score is None) == ("num_beams" not in options)


def test_several_draws_of_a_source(gpt2: Any, sources: list[list[int]]) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": 2, "temperature": 2.0, **LIMITED}
    made = gpt2.generate_ids(sources, num_return_sequences=3, **options)
    assert made[::3] == gpt2.generate_ids(sources, **options), "the first is that of one draw"
    assert all(len({tuple(ids) for ids in made[i : i + 3]}) == 3 for i in range(0, len(made), 3))


def test_patience_finds_better_ones(gpt2: Any, sources: list[list[int]]) -> None:
    def scores(patience: float | None) -> np.ndarray:
        options: dict[str, Any] = {"num_beams": 3, "early_stopping": True, "max_new_tokens": 20}
        made = gpt2.generate_ids(sources, patience=patience, eos_token_id=LIMITED["eos_token_id"], **options)
        return np.array([ids.score for ids in made])

    np.testing.assert_array_equal(scores(1.0), scores(None))
    assert (scores(4.0) >= scores(1.0)).all()
    assert (scores(4.0) > scores(1.0)).any()


def test_groups_differ_the_more_they_pay(gpt2: Any, sources: list[list[int]]) -> None:
    def distinct(penalty: float) -> int:
        options = {"num_beams": 4, "num_beam_groups": 4, "num_return_sequences": 4, "max_new_tokens": 8}
        made = gpt2.generate_ids(sources, diversity_penalty=penalty, **options)
        return sum(len({ids[i] for ids in made[j : j + 4] if i < len(ids)}) for j in (0, 4, 8, 12) for i in range(8))

    assert distinct(1e-6) < distinct(50.0) == 4 * 8 * 4


@pytest.mark.parametrize("length", [4, 5, 6, 12])
def test_phrases_appear(model: Any, sources: list[list[int]], length: int) -> None:
    """Also where nothing would write them, by either way to say so, and where there is room for nothing else."""
    wanted = [[20, 21, 22], [40]]
    made = model.generate_ids(sources, num_beams=4, force_words_ids=wanted, max_new_tokens=length)
    for ids in made:
        assert all(any(ids[i : i + len(phrase)] == phrase for i in range(len(ids))) for phrase in wanted)
    constraints = [maskattn.PhrasalConstraint(wanted[0]), maskattn.DisjunctiveConstraint([[40]])]
    assert made == model.generate_ids(sources, num_beams=4, constraints=constraints, max_new_tokens=length)


def test_phrases_of_the_prompt_do_not_count(gpt2: Any) -> None:
    (made,) = gpt2.generate_ids([[5, 20, 21]], num_beams=3, force_words_ids=[[20, 21]], max_new_tokens=6)
    assert any(made[i : i + 2] == [20, 21] for i in range(5))


def test_progress() -> None:
    """Of alternatives that share a beginning, and of a phrase that is broken off."""
    begin = ConstraintState.start(
        [maskattn.DisjunctiveConstraint([[1, 2, 3], [1, 4]]), maskattn.PhrasalConstraint([5])]
    )
    assert (begin.tokens(), begin.bank, begin.complete) == ([1, 5], 0, False)
    within = begin.add(1)
    assert (within.tokens(), within.bank) == ([2, 4], 1)
    assert (within.add(2).bank, within.add(4).bank, within.add(9).bank) == (2, 3, 0)
    assert within.add(9).tokens() == [5, 1], "what was broken off waits behind the others"
    assert within.add(4).tokens() == [5]
    assert within.add(4).add(5).complete
    assert within.add(4).add(5).bank == 6


def test_contrastive_search_needs_a_position_more(gpt2: Any) -> None:
    prompt = [3] * (POSITIONS - 4)
    assert len(gpt2.generate_ids([prompt], max_new_tokens=5, eos_token_id=[])[0]) == 5
    gpt2.generate_ids([prompt], max_new_tokens=4, penalty_alpha=0.5, top_k=3)
    with pytest.raises(ValueError, match=r"must be at most 4 for sources\[0\] with penalty_alpha, got 5"):
        gpt2.generate_ids([prompt], max_new_tokens=5, penalty_alpha=0.5, top_k=3)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"dola_layers": "middle"}, TypeError, 'dola_layers must be "low", "high" or a list of layers'),
    ({"dola_layers": [0, 2]}, ValueError, r"dola_layers must be layers from 0 to 1, got \[0, 2\]"),
    ({"dola_layers": "low", "num_beams": 2}, ValueError, "dola_layers must be None with beams"),
    ({"guidance_scale": 2.0, "negative_prompt_ids": [[3], [4]]}, ValueError, "one list of token ids or one per source"),
    ({"guidance_scale": 2.0, "negative_prompt_ids": [VOCAB]}, ValueError, "negative_prompt_ids"),
    ({"guidance_scale": 2.0, "negative_prompt_ids": [3] * POSITIONS}, ValueError, "must leave room for 3 new tokens"),
])  # fmt: skip
def test_bad_options(gpt2: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpt2.generate_ids([[3], [4], [5]], max_new_tokens=3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 2.0, "negative_prompt_ids": [[3], [4] * POSITIONS]}, r"for 3 new tokens of sources\[1\]"),
        ({"penalty_alpha": 0.6, "top_k": 4}, r"at most 2 for sources\[1\] with penalty_alpha, got 3"),
    ],
)
def test_room_is_looked_for_before_the_first_batch(
    gpt2: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the sources that have it are written first."""
    sources = [[3], [4] * (POSITIONS - 2)] if "penalty_alpha" in options else [[3], [4]]
    monkeypatch.setattr(gpt2, "_write", None)
    with pytest.raises(ValueError, match=message):
        gpt2.generate_ids(sources, max_new_tokens=3, batch_size=1, **options)


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: maskattn.PhrasalConstraint([]), TypeError, "token_ids must be a list of token ids"),
    (lambda: maskattn.PhrasalConstraint([-1]), ValueError, "token_ids must be token ids from 0 up, got -1"),
    (lambda: maskattn.PhrasalConstraint([True]), TypeError, "token_ids must be token ids"),
    (lambda: maskattn.DisjunctiveConstraint([]), TypeError, "nested_token_ids must be lists of token ids"),
    (lambda: maskattn.DisjunctiveConstraint([[3], [3, 4]]), ValueError, "no list that begins with another"),
])  # fmt: skip
def test_bad_constraints(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
