"""Searches that transformers has moved out of its core, against references in plain Python over its models.

Compared once with those of transformers 4.49 as well: diverse, contrastive and constrained search, DoLa and guidance,
on BART, T5, Llama and GPT-2, gave its tokens and scores.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import search_references as references  # noqa: E402
from search_references import Reader  # noqa: E402

import maskattn  # noqa: E402 - after the skips
from random_models import EOS, PAD, VOCAB, randomize, save, sequences  # noqa: E402

NEW, ENDS = 9, list(range(1, VOCAB, 9))
COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bart": ("BartForConditionalGeneration", {
        "d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 20, "decoder_ffn_dim": 30, "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    }),
    "Llama": ("LlamaForCausalLM", {
        "hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 40, "max_position_embeddings": 80,
    }),
}  # fmt: skip
SOURCES = sequences(4)[:5]


Pair = tuple[Any, maskattn.Model]


def make(name: str, path: Path) -> Pair:
    """Theirs, in float64, and ours; maps are small where rounding would grow from layer to layer."""
    kind, settings = SHAPES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**COMMON | settings)).eval()
    randomize(model, 5, maps=3 if name == "Bart" else 1)
    ours = maskattn.load(save(model, path))
    return model.double(), ours


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(request.param, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make("Llama", tmp_path_factory.mktemp("pair"))


def check(ours: maskattn.Model, want: list[list[int]], **options: Any) -> list[Any]:
    """Ours of a ragged batch; and alone the same."""
    options = {"max_new_tokens": NEW, "eos_token_id": ENDS, **options}
    got = ours.generate_ids(SOURCES, **options)
    assert got == want
    assert got == [ids for source in SOURCES for ids in ours.generate_ids([source], **options)]
    return got


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.9, 6), (0.1, 2)])
def test_contrastive(pair: Pair, alpha: float, k: int) -> None:
    model, ours = pair
    want = [references.contrastive(Reader(model, source), alpha, k, NEW, ENDS) for source in SOURCES]
    got = check(ours, want, penalty_alpha=alpha, top_k=k, return_log_probabilities=True)
    assert got != ours.generate_ids(SOURCES, max_new_tokens=NEW, eos_token_id=ENDS)
    for ids, values in zip(got, ours.score_ids(SOURCES, got), strict=True):
        np.testing.assert_array_equal(ids.log_probabilities, values)


@pytest.mark.parametrize(("dola_layers", "layers"), [
    ("low", [0, 2]), ("high", [3, 5]), ([1, 4], [1, 4]), ([3], [3]),
])  # fmt: skip
def test_dola(llama: Pair, dola_layers: Any, layers: list[int]) -> None:
    model, ours = llama
    want = [references.dola(Reader(model, source), layers, NEW, ENDS) for source in SOURCES]
    got = check(ours, want, dola_layers=dola_layers, return_log_probabilities=True)
    assert got != ours.generate_ids(SOURCES, max_new_tokens=NEW, eos_token_id=ENDS)
    for ids, values in zip(got, ours.score_ids(SOURCES, got), strict=True):
        np.testing.assert_array_equal(ids.log_probabilities, values)


@pytest.mark.parametrize("scale", [1.5, 3.0, -0.5])
@pytest.mark.parametrize("negative", [None, [7, 8, 9], [[4], [5, 6], [7, 8, 9], [3], [2, 2]]], ids=str)
def test_guidance(llama: Pair, scale: float, negative: Any) -> None:
    model, ours = llama
    without = [source[-1:] for source in SOURCES]
    if negative is not None:
        without = negative if isinstance(negative[0], list) else [negative] * len(SOURCES)
    want = [
        references.guided(Reader(model, source), Reader(model, other), scale, NEW, ENDS)
        for source, other in zip(SOURCES, without, strict=True)
    ]
    options = {"guidance_scale": scale, "max_new_tokens": NEW, "eos_token_id": ENDS, "negative_prompt_ids": negative}
    assert ours.generate_ids(SOURCES, **options) == want
    assert ours.generate_ids(SOURCES, batch_size=2, **options) == want


@pytest.mark.parametrize("options", [
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 1.5, "length_penalty": 2.0},
    {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 0.2, "early_stopping": True},
    {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 5.0, "length_penalty": 0.0},
], ids=str)  # fmt: skip
def test_diverse(pair: Pair, options: dict[str, Any]) -> None:
    model, ours = pair
    options = {"length_penalty": 1.0, "early_stopping": False, **options}
    want = []
    for source in SOURCES:
        found = references.diverse(
            forbid(Reader(model, source), PAD), beams=options["num_beams"], groups=options["num_beam_groups"],
            penalty=options["diversity_penalty"], limit=NEW, ends=ENDS, length_penalty=options["length_penalty"],
            early_stopping=options["early_stopping"],
        )  # fmt: skip
        want += found[: options["num_beams"]]
    options |= {"num_return_sequences": options["num_beams"], "suppress_tokens": [PAD]}
    got = check(ours, [ids for _, ids in want], **options)
    np.testing.assert_allclose([ids.score for ids in got], [score for score, _ in want], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("wanted", "options"), [
    ([[[5, 8]]], {"num_beams": 4}),
    ([[[5, 8, 9]], [[17]]], {"num_beams": 5, "length_penalty": 1.5}),
    ([[[30], [32]], [[40, 41], [42, 41]]], {"num_beams": 6, "length_penalty": 0.5}),
    ([[[20, 21, 23], [20, 22]]], {"num_beams": 4, "early_stopping": True}),
], ids=str)  # fmt: skip
def test_constrained(pair: Pair, wanted: Any, options: dict[str, Any]) -> None:
    model, ours = pair
    options = {"length_penalty": 1.0, "early_stopping": False, "num_beams": 4, **options}
    want = []
    for source in SOURCES:
        found = references.constrained(
            forbid(Reader(model, source), PAD), wanted, beams=options["num_beams"], limit=NEW, ends=ENDS,
            length_penalty=options["length_penalty"], early_stopping=options["early_stopping"],
        )  # fmt: skip
        want.append(found[0])
    words = [phrases if len(phrases) > 1 else phrases[0] for phrases in wanted]
    got = check(ours, [ids for _, ids in want], force_words_ids=words, suppress_tokens=[PAD], **options)
    np.testing.assert_allclose([ids.score for ids in got], [score for score, _ in want], rtol=1e-4, atol=1e-4)
    for ids in got:
        assert all(any(stands_in(phrase, ids) for phrase in phrases) for phrases in wanted)


def stands_in(phrase: list[int], ids: list[int]) -> bool:
    return any(ids[i : i + len(phrase)] == phrase for i in range(len(ids)))


def forbid(reader: Reader, token: int) -> Any:
    """Log-probabilities, once for each prefix, but for one token."""

    @cache
    def read(ids: tuple[int, ...]) -> Any:
        values = reader.log_probs(list(ids))
        values[token] = -torch.inf
        return values

    return lambda ids: read(tuple(ids))
