"""The rules of timestamps step by step, and segments cut by them, on drawn inputs against transformers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from maskattn.decoder.transcription.segments import cut  # noqa: E402
from maskattn.decoder.transcription.timestamps import TimestampRules  # noqa: E402

END, NO_TIMESTAMPS, FIRST, VOCAB = 9, 12, 13, 40  # text below END, then special tokens, then timestamps


def processors(begin: int, latest: int | None) -> tuple[Any, TimestampRules]:
    config = transformers.GenerationConfig(eos_token_id=END)
    config.no_timestamps_token_id = NO_TIMESTAMPS
    if latest is not None:
        config.max_initial_timestamp_index = latest
    theirs = transformers.WhisperTimeStampLogitsProcessor(config, begin_index=begin)
    return theirs, TimestampRules(FIRST, NO_TIMESTAMPS, END, begin, latest)


@given(
    ids=st.integers(0, 12).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    begin=st.integers(1, 4),
    latest=st.none() | st.integers(0, 30),
    seed=st.integers(0, 99),
    favour=st.sampled_from([-8.0, -3.0, 0.0, 3.0]),
    forbidden=st.sets(st.integers(0, VOCAB - 1), max_size=VOCAB),
)
def test_step(
    ids: list[list[int]], begin: int, latest: int | None, seed: int, favour: float, forbidden: set[int]
) -> None:
    rng = np.random.default_rng(seed)
    scores = 2 * rng.standard_normal((len(ids), VOCAB)).astype(np.float32)
    scores[:, FIRST:] += favour
    scores[:, list(forbidden)] = -np.inf
    prompt = rng.integers(0, VOCAB, (len(ids), begin))
    inputs = np.concatenate([prompt, np.array(ids, np.int64)], axis=1)
    theirs, ours = processors(begin, latest)
    want = theirs(torch.from_numpy(inputs), torch.from_numpy(scores)).numpy()
    before = scores.copy()
    np.testing.assert_array_equal(ours(inputs, scores), want)
    np.testing.assert_array_equal(scores, before)


@given(seed=st.integers(0, 10_000), favour=st.sampled_from([-3.0, -2.0, -1.0, 0.0]), latest=st.none() | st.just(3))
def test_sequences(seed: int, favour: float, latest: int | None) -> None:
    """As they come about: what the rules let through is what they look back on."""
    rng = np.random.default_rng(seed)
    theirs, ours = processors(2, latest)
    ids = np.array([[3, 4], [5, 6]])
    for _ in range(20):
        scores = 2 * rng.standard_normal((2, VOCAB)).astype(np.float32)
        scores[:, FIRST:] += favour
        got = ours(ids, scores)
        np.testing.assert_array_equal(got, theirs(torch.from_numpy(ids), torch.from_numpy(scores)).numpy())
        ids = np.concatenate([ids, got.argmax(axis=1)[:, None]], axis=1)
    for row in ids[:, 2:]:
        times = row[row >= FIRST]
        assert row[0] >= FIRST
        assert (np.diff(times) >= 0).all()
        assert row[1] < FIRST
        assert not np.all([row[i : len(row) - 2 + i] >= FIRST for i in range(3)], axis=0).any()


@given(
    tokens=st.lists(st.integers(0, 8) | st.integers(FIRST, VOCAB - 1), max_size=14),
    frames=st.integers(1, 30).map(lambda n: 100 * n),
    seek=st.integers(0, 500),
)
def test_segments(tokens: list[int], frames: int, seek: int) -> None:
    segments, step = transformers.WhisperForConditionalGeneration._retrieve_segment(
        seek_sequence=torch.tensor(tokens, dtype=torch.long), seek_outputs=[None],
        time_offset=torch.tensor([seek * 0.01], dtype=torch.float64), timestamp_begin=FIRST,
        seek_num_frames=torch.tensor([frames]), time_precision=0.02, time_precision_features=0.01, input_stride=2,
        prev_idx=0, idx=0, return_token_timestamps=False, decoder_input_ids=torch.zeros((1, 3)),
    )  # fmt: skip
    cuts, ours = cut(tokens, FIRST, frames)
    assert [list(one.tokens) for one in cuts] == [one["tokens"].tolist() for one in segments]
    assert ours == max(1, int(step))  # a pair of the timestamp 0 would let transformers hear the same window for ever
    for one, want in zip(cuts, segments, strict=True):
        if one.tokens and one.tokens[0] >= FIRST:
            assert seek * 0.01 + one.start * 0.02 == pytest.approx(float(want["start"]))
            assert seek * 0.01 + one.end * 0.02 == pytest.approx(float(want["end"]))
