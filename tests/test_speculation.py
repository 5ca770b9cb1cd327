"""Drafts change how many passes are made, not what is written; draws keep their distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_families
from maskattn.cache import KVCache
from maskattn.decoder.model import Transformer
from maskattn.decoder.speculation import growing
from maskattn.decoder.speculation.chances import Chances, accept_or_draw
from maskattn.decoder.speculation.drafts import Drafts
from maskattn.decoder.speculation.lookup import follows
from maskattn.families import FAMILIES
from tiny_families import VOCAB, config

NEW = 40
WRITES = [name for name, family in FAMILIES.items() if family.decoder]
LOOKUP = {"prompt_lookup_num_tokens": 5}
TREE = {"num_draft_branches": 3}
#: Random weights make for unsure assistants: none shall end its drafts early.
LONG = {"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}


def pair(path: Path, settings: dict[str, Any], *, away: float = 0.02, dtype: str = "float32") -> tuple[Any, Any]:
    """A model, and another one that is ``away`` from it, in standard deviations of its weights."""
    weights, rng = tiny_families.tensors(settings), np.random.default_rng(1)
    near = {name: (w + away * w.std() * rng.standard_normal(w.shape)).astype(np.float32) for name, w in weights.items()}
    model = maskattn.load(tiny_families.write(path / "model", settings, weights), dtype=dtype)
    return model, maskattn.load(tiny_families.write(path / "assistant", settings, near))


def sources(name: str) -> Any:
    rng = np.random.default_rng(4)
    if name == "whisper":
        return rng.standard_normal((4, 7, 40), dtype=np.float32)
    return [rng.integers(2, VOCAB, n).tolist() for n in (5, 1, 9, 3)]


def some_drafts_were_right(made: list[Any]) -> bool:
    right, all_ = sum(ids.speculated.accepted for ids in made), sum(ids.speculated.drafted for ids in made)
    assert all(ids.speculated.passes + ids.speculated.accepted >= len(ids) for ids in made)
    return 0 < right < all_


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", WRITES)
def test_greedy_tokens_are_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    """Of every family: a pass over several tokens has the bits of as many steps."""
    model, assistant = pair(tmp_path, config(name), dtype=dtype)
    options = {"max_new_tokens": NEW, "return_log_probabilities": True}
    want = model.generate_ids(sources(name), **options)
    for drafts in (LOOKUP, LOOKUP | TREE, {"assistant_model": assistant, **LONG, **TREE}):
        got = model.generate_ids(sources(name), **options, **drafts)
        assert got == want
        assert any(ids.speculated.accepted for ids in got)
        for ids, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(ids.log_probabilities, other.log_probabilities)


@pytest.fixture(autouse=True)
def every_branch_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights make for unsure assistants, whose branches all would be too improbable."""
    monkeypatch.setattr(growing, "LEAST_PROBABLE", 0.0)


STORAGES = [("marian", {"page_size": 16}), ("marian", {"dtype": "int8"}), ("mistral", {"window": 5})]
STORAGES += [("mistral", {"page_size": 16}), ("mistral", {"window": 5, "dtype": "bfloat16"})]


@pytest.mark.parametrize(("name", "storage"), STORAGES, ids=str)
def test_in_every_storage_and_batch(
    name: str, storage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new_cache(self: Any, batch: int, capacity: int = 1024, **asked: Any) -> KVCache:
        sizes = self.decoder.sizes
        return KVCache(sizes.layers, batch, sizes.kv_heads, capacity, sizes.head_dim, **storage)

    monkeypatch.setattr(Transformer, "new_cache", new_cache)
    model, assistant = pair(tmp_path, config(name))
    options = {"max_new_tokens": NEW, "repetition_penalty": 1.3, "min_new_tokens": 9}
    want = model.generate_ids(sources(name), **options)
    schedule = {"num_assistant_tokens_schedule": "heuristic"}
    assisted = {"assistant_model": assistant, **LONG}
    for drafts in (LOOKUP, LOOKUP | TREE, assisted, assisted | schedule, assisted | TREE):
        for batch_size in (1, 4):
            got = model.generate_ids(sources(name), **options, **drafts, batch_size=batch_size)
            assert got == want
            assert some_drafts_were_right(got)


TRAINED = {"max_position_embeddings": 16, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "dynamic", "factor": 2.0, **TRAINED},
        {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], **TRAINED},
    ],
    ids=lambda rope: rope["type"],
)
def test_where_rotations_change_on_the_way(rope: dict[str, Any], tmp_path: Path) -> None:
    """Sequences of different lengths grow past the trained length: with each token, or with one of them."""
    model, assistant = pair(tmp_path, config("llama", rope_scaling=rope))
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW}
    want = model.generate_ids(sources("llama"), **options)
    for drafts in (LOOKUP, LOOKUP | TREE, {"assistant_model": assistant, **LONG, **TREE}):
        got = model.generate_ids(sources("llama"), **options, **drafts)
        assert got == want
        assert some_drafts_were_right(got)


def test_drafts_behind_a_prefix(tmp_path: Path) -> None:
    model, _ = pair(tmp_path, config("mistral"))
    prefixes = [np.random.default_rng(i).standard_normal((i, model.width), dtype=np.float32) for i in range(4)]
    options = {"prefix_embeddings": prefixes, "max_new_tokens": NEW}
    want = model.generate_ids(sources("mistral"), **options)
    for drafts in (LOOKUP, LOOKUP | TREE):
        assert model.generate_ids(sources("mistral"), **options, **drafts) == want


def test_all_that_ends_a_sequence_does_so_inside_a_draft(tmp_path: Path) -> None:
    """The model assists itself: whatever it writes has been drafted, the end and what would stand behind it too."""
    model, _ = pair(tmp_path, config("marian"))
    plain = model.generate_ids(sources("marian"), max_new_tokens=NEW)
    drafts = {"assistant_model": model, **LONG}
    for options in (
        {"eos_token_id": plain[0][7]},
        {"stopping_criteria": [lambda ids, scores: np.isin(ids[:, -1], [plain[1][5], plain[3][11]])]},
        {"max_new_tokens": 13},
        {"forced_eos_token_id": 1, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    ):
        want = model.generate_ids(sources("marian"), **{"max_new_tokens": NEW} | options)
        assert want != plain
        got = model.generate_ids(sources("marian"), **{"max_new_tokens": NEW} | options, **drafts)
        assert got == want
        assert all(ids.speculated.passes <= 1 + -(-len(ids) // 6) for ids in got)


def test_functions_see_what_is_written_and_nothing_else(tmp_path: Path) -> None:
    """By lookup no draft is shown to them: each prefix of the result comes once, in its order."""
    model, _ = pair(tmp_path, config("marian"))
    seen: dict[int, list[list[int]]] = {}

    def allowed(i: int, ids: np.ndarray) -> list[int]:
        seen.setdefault(i, []).append(ids.tolist())
        return list(range(2, VOCAB))

    made = model.generate_ids(sources("marian"), max_new_tokens=NEW, prefix_allowed_tokens_fn=allowed, **LOOKUP)
    for i, ids in enumerate(made):
        assert seen[i] == [[2, *ids[:n]] for n in range(NEW)]
    assert some_drafts_were_right(made)


# Draws


@pytest.mark.parametrize("name", ["marian", "llama"])
def test_lookup_leaves_every_draw_as_it_is(name: str, tmp_path: Path) -> None:
    model, _ = pair(tmp_path, config(name))
    options = {"max_new_tokens": NEW, "do_sample": True, "seed": 3, "temperature": 0.4}
    want = model.generate_ids(sources(name), **options)
    for drafts in (LOOKUP, LOOKUP | TREE):
        for batch_size in (1, 4):
            got = model.generate_ids(sources(name), **options, **drafts, batch_size=batch_size)
            assert got == want
            assert some_drafts_were_right(got)


@pytest.mark.parametrize("tree", [{}, TREE], ids=str)
def test_draws_with_an_assistant_do_not_depend_on_the_batch(tree: dict[str, Any], tmp_path: Path) -> None:
    model, assistant = pair(tmp_path, config("llama"), away=0.1)
    options = {"max_new_tokens": NEW, "do_sample": True, "seed": 3, "assistant_model": assistant, **LONG, **tree}
    want = model.generate_ids(sources("llama"), **options, num_assistant_tokens_schedule="heuristic")
    assert some_drafts_were_right(want)
    alone = model.generate_ids(sources("llama"), **options, num_assistant_tokens_schedule="heuristic", batch_size=1)
    assert alone == want


@pytest.mark.parametrize("tree", [{}, TREE, {"num_draft_branches": 8}], ids=str)
def test_draws_with_an_assistant_have_the_distribution_of_the_model(tree: dict[str, Any], tmp_path: Path) -> None:
    """Pearson's chi-square of three tokens, of which two are drafted, against the model's own probabilities."""
    model, assistant = pair(tmp_path, config("llama"), away=0.3)
    source, top, temperature, many = [5, 9, 11], 3, 1.5, 3000
    wanted: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        before, wanted = wanted, {}
        for ids, probability in before.items():
            every = [[token] for token in range(VOCAB)]
            scores = np.concatenate(model.score_ids([[*source, *ids]] * VOCAB, every)).astype(np.float64) / temperature
            best = np.argsort(-scores)[:top]
            weights = np.exp(scores[best] - scores.max())
            wanted |= {(*ids, int(t)): probability * w for t, w in zip(best, weights / weights.sum(), strict=True)}
    made = model.generate_ids(
        [source] * many,
        max_new_tokens=3,
        do_sample=True,
        seed=5,
        top_k=top,
        temperature=temperature,
        eos_token_id=[],
        assistant_model=assistant,
        **LONG,
        **tree,
    )
    assert some_drafts_were_right(made)
    found = dict.fromkeys(wanted, 0)
    for ids in made:
        found[tuple(ids)] += 1
    square = sum((found[key] - many * p) ** 2 / (many * p) for key, p in wanted.items())
    free = len(wanted) - 1
    assert square < free + 4 * np.sqrt(2 * free), square


@pytest.mark.parametrize("drawn", [1, 2, 4])
def test_drafts_drawn_without_replacement_become_draws_of_the_model(drawn: int) -> None:
    """Where neither of the two distributions holds all that the other one does."""
    wanted = Chances(np.array([1, 2, 4, 7, 8]), np.array([0.3, 0.05, 0.3, 0.25, 0.1]))
    drafted = Chances(np.array([0, 2, 4, 5, 7]), np.array([0.1, 0.5, 0.2, 0.1, 0.1]))
    rng, many, found, accepted = np.random.default_rng(0), 20_000, dict.fromkeys(wanted.ids.tolist(), 0), 0
    for _ in range(many):
        tokens = rng.choice(drafted.ids, drawn, replace=False, p=drafted.probabilities).tolist()
        token = accept_or_draw(tokens, drafted, wanted, rng)
        found[token] += 1
        accepted += token in tokens
    expected = many * wanted.probabilities
    square = ((np.array(list(found.values())) - expected) ** 2 / expected).sum()
    assert square < 4 + 4 * np.sqrt(8), square
    assert accepted / many > [0, 0.34, 0.5, 0, 0.6][drawn]


# Trees


def test_branches_beside_an_assistant_s_draft_are_followed(tmp_path: Path) -> None:
    """Fewer passes write the same tokens, and of a tree's tokens each is counted once."""
    model, assistant = pair(tmp_path, config("llama"), away=0.1)
    drafts = {"max_new_tokens": NEW, "assistant_model": assistant, **LONG}
    alone = model.generate_ids(sources("llama"), **drafts)
    for branches in (2, 4):
        tree = model.generate_ids(sources("llama"), **drafts, num_draft_branches=branches)
        assert tree == alone
        assert sum(ids.speculated.passes for ids in tree) < sum(ids.speculated.passes for ids in alone)
        for ids in tree:
            passes, drafted, accepted = ids.speculated
            assert passes + accepted >= len(ids)
            assert drafted <= (passes - 1) * (5 + branches - 1)


def test_lookup_follows_what_stands_at_several_places(tmp_path: Path) -> None:
    """Of a text that repeats itself unevenly more is right, the more of its places are drafted."""
    model, _ = pair(tmp_path, config("llama"))
    text = np.random.default_rng(0).integers(4, 8, NEW + 8).tolist()

    def copies(i: int, ids: np.ndarray) -> list[int]:
        return [text[len(ids)]]

    options = {"max_new_tokens": NEW, "prefix_allowed_tokens_fn": copies}
    passes = []
    for branches in (1, 2, 4):
        (ids,) = model.generate_ids([text[:8]], **options, **LOOKUP, num_draft_branches=branches)
        assert ids == text[8:]
        passes.append(ids.speculated.passes)
    assert passes[0] > passes[1] > passes[2], passes


def test_a_tree_counts_tokens_that_branches_share_once() -> None:
    trees = [[np.array([5, 6, 7]), np.array([5, 6, 9, 4]), np.array([5, 6]), np.array([8])], [], [np.array([1])]]
    drafts = Drafts.of(trees)
    assert drafts.sequences.tolist() == [0, 0, 0, 0, 1, 2]
    assert drafts.owners[:, :4].tolist() == [[0] * 4, [0] * 3 + [1], [0] * 3 + [2], [0] + [3] * 3, [4] * 4, [5] * 4]
    assert drafts.sizes.tolist() == [6, 0, 1]
    assert drafts.without_branches().tokens.tolist() == [[5, 6, 7], [0, 0, 0], [1, 0, 0]]


# What is looked up


def test_lookup_takes_the_latest_whole_draft() -> None:
    text = np.array([1, 2, 7, 8, 9, 1, 2, 5, 6, 1, 2])

    def found(ngram: Any, most: int) -> list[list[int]]:
        return [some.tolist() for some in follows(text, np.array(ngram), most)]

    assert found([1, 2], 2) == [[5, 6], [7, 8]]
    assert found([1, 2], 6) == [[7, 8, 9, 1, 2, 5], [5, 6, 1, 2]]
    assert found([1, 2], 9) == [[7, 8, 9, 1, 2, 5, 6, 1, 2], [5, 6, 1, 2]], "none is whole: the one with most"
    assert found([6, 1], 3) == [[2]]
    assert found([2, 2], 3) == []
    assert not list(follows(text[:1], text[:1], 3))


def test_an_encoder_s_source_is_looked_up_too(tmp_path: Path) -> None:
    """A model that copies: each token follows its predecessor in the source."""
    model, _ = pair(tmp_path, config("marian"))
    source = [7, 9, 12, 30, 4, 44, 21, 5, 50, 17]

    def copies(i: int, ids: np.ndarray) -> list[int]:
        return [source[len(ids) - 1]]

    (ids,) = model.generate_ids([source], max_new_tokens=10, prefix_allowed_tokens_fn=copies, **LOOKUP)
    assert ids == source
    assert ids.speculated == (3, 7, 7)


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt_lookup_num_tokens": -1}, ValueError, "prompt_lookup_num_tokens must be at least 0, got -1"),
        ({"max_matching_ngram_size": 0}, ValueError, "max_matching_ngram_size must be at least 1, got 0"),
        ({"prompt_lookup_num_tokens": 3, "num_draft_branches": 0}, ValueError, "num_draft_branches must be at least 1"),
        ({"prompt_lookup_num_tokens": 3, "num_beams": 2}, ValueError, "num_beams must be 1 with assistant_model"),
        ({"assistant_model": "tiny"}, TypeError, "assistant_model must be a maskattn.Model, .* got 'tiny'"),
        ({"num_assistant_tokens": 0}, ValueError, "num_assistant_tokens must be at least 1, got 0"),
        ({"num_assistant_tokens_schedule": "fast"}, ValueError, 'must be "constant", "heuristic" or'),
        ({"assistant_confidence_threshold": 2}, ValueError, r"assistant_confidence_threshold must be in \[0, 1\]"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    model, _ = pair(tmp_path, config("llama"))
    with pytest.raises(error, match=message):
        model.generate_ids([[3]], max_new_tokens=3, **options)


def test_assistants_that_do_not_fit(tmp_path: Path) -> None:
    model, other = pair(tmp_path, config("llama"))
    marian, _ = pair(tmp_path / "marian", config("marian"))
    gpt2, _ = pair(tmp_path / "gpt2", config("gpt2"))
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens must be None with an assistant_model, got 3"):
        model.generate_ids([[3]], assistant_model=other, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="must have a decoder alone, as the model has, got family marian"):
        model.generate_ids([[3]], assistant_model=marian)
    with pytest.raises(ValueError, match="must have an encoder and a decoder, as the model has, got family llama"):
        marian.generate_ids([[3]], assistant_model=model)
    embeddings = [np.zeros((1, model.width), np.float32)]
    with pytest.raises(ValueError, match="prefix_embeddings must be None with an assistant_model"):
        model.generate_ids([[3]], prefix_embeddings=embeddings, assistant_model=other)
    with pytest.raises(ValueError, match="must have positions for prompts of 70 tokens, got 64"):
        model.generate_ids([[3] * 70], assistant_model=gpt2, max_new_tokens=3)


@pytest.mark.parametrize("vocab", [VOCAB - 20, VOCAB + 9])
def test_an_assistant_of_another_vocabulary_size(vocab: int, tmp_path: Path) -> None:
    """As where one of the two has been padded: what only one of them knows is not drafted."""
    model, _ = pair(tmp_path, config("llama"))
    other, _ = pair(tmp_path / "other", config("gpt2", vocab_size=vocab))
    want = model.generate_ids(sources("llama"), max_new_tokens=NEW)
    got = model.generate_ids(sources("llama"), max_new_tokens=NEW, assistant_model=other, **LONG)
    assert got == want
    assert all(ids.speculated.drafted for ids in got)


def test_what_the_files_say(tmp_path: Path) -> None:
    """A generation config may ask for lookup; an assistant's says how it drafts."""
    settings = config("llama", prompt_lookup_num_tokens=5)
    model, assistant = pair(tmp_path, settings)
    (ids,) = model.generate_ids([[5, 9]], max_new_tokens=NEW)
    assert ids.speculated is not None
    (ids,) = model.generate_ids([[5, 9]], max_new_tokens=NEW, prompt_lookup_num_tokens=0)
    assert ids.speculated is None
    settings = config("llama", num_assistant_tokens=3, assistant_confidence_threshold=0.0)
    _, assistant = pair(tmp_path / "other", settings)
    (ids,) = model.generate_ids([[5, 9]], max_new_tokens=NEW, assistant_model=assistant, prompt_lookup_num_tokens=0)
    assert 0 <= 3 * (ids.speculated.passes - 1) - ids.speculated.drafted < 3, "the last draft has less room"
