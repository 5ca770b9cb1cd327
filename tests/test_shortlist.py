"""A shortlist writes what the whole vocabulary writes with all other tokens suppressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
from tiny_families import VOCAB, config, write

SOURCES = [[5, 9, 14, 3], [7, 2], [11, 4, 8, 30, 6, 2]]
SHORTLIST = [3, 30, 8, 12, 5, 21, 17]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", ["marian", "gemma2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 9},
        {"do_sample": True, "seed": 3, "top_k": 0},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.5},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_as_if_others_were_suppressed(name: str, dtype: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = maskattn.load(write(tmp_path, config(name)), dtype=dtype)
    ends = [2, 4]
    asked: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": ends, **options}
    others = sorted(set(range(VOCAB)) - set(SHORTLIST) - set(ends))
    got = model.generate_ids(SOURCES, shortlist=SHORTLIST, **asked)
    # Beams add up log-probabilities: those among the tokens that are left.
    among = {"renormalize_logits": True} if "num_beams" in options else {}
    assert got == model.generate_ids(SOURCES, suppress_tokens=others, **asked, **among)
    assert {token for ids in got for token in ids} <= {*SHORTLIST, *ends}


@pytest.mark.parametrize("options", [{"guidance_scale": 1.5}, {"penalty_alpha": 0.6, "top_k": 30}], ids=str)
def test_in_other_searches(options: dict[str, Any], tmp_path: Path) -> None:
    """More candidates than tokens that are left, too."""
    model = maskattn.load(write(tmp_path, config("gemma2")))
    asked: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": [2, 4], **options}
    others = sorted(set(range(VOCAB)) - {*SHORTLIST, 2, 4})
    got = model.generate_ids(SOURCES, shortlist=SHORTLIST, **asked)
    assert got == model.generate_ids(SOURCES, suppress_tokens=others, **asked)
    assert {token for ids in got for token in ids} <= {*SHORTLIST, 2, 4}


def test_log_probabilities_are_among_these(tmp_path: Path) -> None:
    model = maskattn.load(write(tmp_path, config("marian")))
    (got,) = model.generate_ids(SOURCES[:1], shortlist=SHORTLIST, max_new_tokens=4, return_log_probabilities=True)
    forward, memory = model._forward, model._forward.encode([np.array(SOURCES[0])])
    start = model._requests.prompts([SOURCES[0]], None)[0]
    hidden = forward.decode(np.concatenate([start, got[:-1]])[None], memory)[0]
    known = sorted({*SHORTLIST, *np.ravel(model._generation.get("eos_token_id", []))})
    scores = forward.logits(hidden)[:, known].astype(np.float64)
    likely = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    assert got.log_probabilities is not None
    np.testing.assert_allclose(
        got.log_probabilities, [row[known.index(token)] for row, token in zip(likely, got, strict=True)], atol=1e-5
    )


def test_streams_take_it_and_others_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = maskattn.load(write(tmp_path, config("marian")))
    options: dict[str, Any] = {"shortlist": np.array(SHORTLIST), "max_new_tokens": 6}
    assert [t for some in model.stream_ids(SOURCES[0], **options) for t in some] == model.generate_ids(
        SOURCES[:1], **options
    )[0]
    with maskattn.Engine(model) as engine, pytest.raises(ValueError, match="one sequence, greedy or drawn"):
        engine.submit_ids(SOURCES[0], **options)
    with pytest.raises(ValueError, match=f"shortlist must hold token ids below {VOCAB}, got {VOCAB}"):
        model.generate_ids(SOURCES, shortlist=[3, VOCAB])
    for contradicting, message in [
        ({"grammar": "start: /a+/"}, "grammar must come without a shortlist"),
        (
            {"force_words_ids": [[3, 40]], "num_beams": 3},
            r"must hold the tokens of force_words_ids .* \[40\]",
        ),
        ({"num_beams": 4, "shortlist": [2]}, "shortlist must hold a token besides end tokens with num_beams"),
        ({"min_new_tokens": 3, "shortlist": [2]}, "shortlist must hold a token besides end tokens with num_beams"),
        (
            {"num_beams": 9, "num_return_sequences": 9, "shortlist": [3]},
            r"shortlist must hold enough tokens for num_return_sequences=9, got 1 .* sources\[0\] can get 7 sequences",
        ),
    ]:
        asked = {**options, "eos_token_id": 2, **contradicting}
        with monkeypatch.context() as patch:
            patch.setattr(model, "_write", None)  # nothing is computed
            patch.setattr(model._texts, "grammar", lambda *arguments: None)
            with pytest.raises(ValueError, match=message):
                model.generate_ids(SOURCES, **asked)
    # What is forced is written, and has its probability, whatever the list says.
    forced = {"forced_bos_token_id": 40, "forced_eos_token_id": 41, "return_log_probabilities": True}
    for ids in model.generate_ids(SOURCES, **options, **forced):
        assert ids[0] == 40
        assert {*ids} - {40, 41, 2} <= {*SHORTLIST}
        assert np.isfinite(ids.log_probabilities).all()
    with pytest.raises(ValueError, match="shortlist must be token ids, at least one"):
        model.generate_ids(SOURCES, shortlist=[])
    with pytest.raises(ValueError, match="num_return_sequences must be 1 with penalty_alpha"):
        model.generate_ids(SOURCES, penalty_alpha=0.5, top_k=4, num_return_sequences=2)
    with pytest.raises(TypeError, match="on_tokens must be a function of Tokens, got int"):
        model.generate_ids(SOURCES, on_tokens=3)  # type: ignore[arg-type]
