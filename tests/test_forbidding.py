"""Options that only take tokens away need the scores of few tokens, and change nothing else by that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_marian
from maskattn.decoder import Generated, heads

SOURCES = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 3, 4, 3, 4]]
EVERYTHING: dict[str, Any] = {
    "bad_words_ids": [[5], [7, 8], [9, 3, 4]],
    "suppress_tokens": [4, 6, 9],
    "begin_suppress_tokens": [3, 5, 12],
    "min_new_tokens": 4,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
}
OPTIONS: list[dict[str, Any]] = [{}, *({key: value} for key, value in EVERYTHING.items()), EVERYTHING]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> maskattn.Model:
    return maskattn.load(tiny_marian.write(tmp_path_factory.mktemp("forbidding") / "tiny"))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of scores were written, by call."""
    calls: list[int] = []
    of_all = heads.LanguageHead.__call__

    def count(self: heads.LanguageHead, hidden: np.ndarray) -> np.ndarray:
        calls.append(len(hidden))
        return of_all(self, hidden)

    monkeypatch.setattr(heads.LanguageHead, "__call__", count)
    return calls


def ids_of(options: dict[str, Any]) -> str:
    return "all" if options is EVERYTHING else ",".join(options) or "none"


def flat(found: Any) -> list[Any]:
    return [ids for each in found for ids in ([each] if isinstance(each, Generated) else each)]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=ids_of)
def test_as_with_all_scores(
    model: maskattn.Model, written: list[int], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], beams: int
) -> None:
    search = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 9, **options}
    few = flat(model.generate_ids(SOURCES, **search))
    assert len(written) <= 1  # the forced end at the limit
    written.clear()
    monkeypatch.setattr(heads, "_SEVERAL", 0)
    want = flat(model.generate_ids(SOURCES, **search))
    assert len(written) == max(map(len, want))
    assert few == want
    assert len({tuple(ids) for ids in few}) > 1
    if beams > 1:
        assert [ids.score for ids in few] == [ids.score for ids in want]  # to the bit, whoever needs all scores


@pytest.mark.parametrize("beams", [1, 2])
def test_where_hardly_anything_is_left(model: maskattn.Model, beams: int) -> None:
    everything = set(range(tiny_marian.CONFIG["vocab_size"]))
    left = {7, tiny_marian.EOS}
    search = {"num_beams": beams, "max_new_tokens": 3}
    for ids in model.generate_ids(SOURCES, suppress_tokens=sorted(everything - left), **search):
        assert left.issuperset(ids)
    with pytest.raises(ValueError, match="options must leave each sequence a token with a finite score"):
        model.generate_ids(SOURCES, suppress_tokens=sorted(everything), **search)


def test_requests_of_an_engine(model: maskattn.Model, written: list[int]) -> None:
    asked = [{"max_new_tokens": 4 + i, **options} for i, options in enumerate(OPTIONS)]
    alone = [model.generate_ids([SOURCES[i % 3]], **search)[0] for i, search in enumerate(asked)]
    written.clear()
    with maskattn.Engine(model, max_batch=len(asked)) as engine:
        requests = [engine.submit_ids(SOURCES[i % 3], **search) for i, search in enumerate(asked)]
        assert [request.result(60) for request in requests] == alone
    assert len(written) <= len(asked)  # forced ends
