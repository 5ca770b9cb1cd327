"""Requests that share steps: each gets what it gets alone, in the order in which they came."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_families
import tiny_marian
from tiny_engine import MODELS, POSITIONS, SECONDS, VOCAB, Gate, model, random_requests


@pytest.mark.parametrize("name", MODELS)
def test_each_request_gets_what_it_gets_alone(name: str) -> None:
    """Few rows, little memory and small chunks, so that all of it happens: waiting, joining, leaving, reading on."""
    writer = model(name)
    sources, options = random_requests(40)
    alone = [
        writer.generate_ids([source], return_log_probabilities=True, **asked)[0]
        for source, asked in zip(sources, options, strict=True)
    ]
    with maskattn.Engine(writer, max_batch=5, max_tokens=256, prefill=8, page_size=16) as engine:
        requests = [
            engine.submit_ids(source, return_log_probabilities=True, **asked)
            for source, asked in zip(sources, options, strict=True)
        ]
        for request, want in zip(requests, alone, strict=True):
            got = request.result(SECONDS)
            assert got == want
            np.testing.assert_array_equal(got.log_probabilities, want.log_probabilities)
            assert [token for tokens in request for token in tokens] == want
    assert engine.counts == (0, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "uint4"])
@pytest.mark.parametrize("name", ["gpt2", "marian"])
def test_narrow_weights(name: str, dtype: str, tmp_path: Path) -> None:
    writer = maskattn.load(tiny_families.write(tmp_path, tiny_families.config(name)), dtype=dtype)
    sources = [[5, 9, 14], [7], [11, 4, 8, 30, 6, 12, 3], [3, 4]]
    options: dict[str, Any] = {"max_new_tokens": 12, "return_log_probabilities": True}
    alone = [writer.generate_ids([source], **options)[0] for source in sources]
    with maskattn.Engine(writer, max_batch=3, prefill=4, page_size=16) as engine:
        requests = [engine.submit_ids(source, **options) for source in sources]
        for request, want in zip(requests, alone, strict=True):
            got = request.result(SECONDS)
            assert got == want
            np.testing.assert_array_equal(got.log_probabilities, want.log_probabilities)


def test_at_random_from_many_threads_some_cancelled_some_too_long() -> None:
    writer = model("gpt2")
    sources, options = random_requests(64, 4)
    alone = [writer.generate_ids([source], **asked)[0] for source, asked in zip(sources, options, strict=True)]
    got: dict[int, Any] = {}

    def one(i: int) -> None:
        rng = np.random.default_rng(i)
        time.sleep(rng.random() * 0.2)
        if i % 8 == 3:
            with pytest.raises(ValueError, match="max_new_tokens must be in"):
                engine.submit_ids(sources[i], max_new_tokens=POSITIONS)
        request = engine.submit_ids(sources[i], **options[i])
        if i % 4 == 1:
            for n, _ in enumerate(request):
                if n == int(rng.integers(3)):
                    request.cancel()
        try:
            got[i] = request.result(SECONDS)
        except CancelledError:
            assert i % 4 == 1
            got[i] = None

    with maskattn.Engine(writer, max_batch=16, max_tokens=512, prefill=16, page_size=16) as engine:
        threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert sorted(got) == list(range(64))
    assert [ids for ids in got.values() if ids is not None] == [alone[i] for i in got if got[i] is not None]
    assert any(ids is None for ids in got.values())
    assert engine._scheduler._cache.pages_in_use == 0


def test_texts_come_in_pieces(tmp_path: Path) -> None:
    writer = maskattn.load(tiny_marian.write(tmp_path))
    texts = ["march 3", "the 4th of may", "2 x"]
    options: dict[str, Any] = {"max_new_tokens": 12, "stop_strings": ["q", "8e"]}
    with maskattn.Engine(writer) as engine:
        requests = [engine.submit(text, **options) for text in texts]
        assert ["".join(request) for request in requests] == writer.generate(texts, **options)
        assert [request.result() for request in requests] == writer.generate(texts, **options)
        assert list(requests[0]) == list(writer.stream(texts[0], **options))


def test_a_beginning_is_read_once() -> None:
    writer = model("gpt2")
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, VOCAB, 40).tolist()] * 2
    prompts += [prompts[0][:36] + rng.integers(3, VOCAB, 4).tolist() for _ in range(4)]
    alone = [writer.generate_ids([prompt], max_new_tokens=9)[0] for prompt in prompts]
    read: list[int] = []
    with maskattn.Engine(writer, max_tokens=1024, page_size=16) as engine:
        forward, decode = engine._scheduler._model, type(engine._scheduler._model).decode

        def counting(self: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
            read.append(tokens.shape[1])
            return decode(self, tokens, *rest, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(forward), "decode", counting)
            requests = [engine.submit_ids(prompt, max_new_tokens=9) for prompt in prompts]
            assert [request.result(SECONDS) for request in requests] == alone
            assert sorted(n for n in read if n > 1) == [8] * 5 + [40]
            # What has been written is a beginning, too, as in the next turn of a conversation.
            read.clear()
            again = prompts[0] + alone[0] + [5]
            engine.submit_ids(again, max_new_tokens=2).result(SECONDS)
            assert read[0] == len(again) - 48


def test_first_come_first_served() -> None:
    """A long request waits for room, and those behind it wait for it: nobody overtakes."""
    gate, begun = Gate(), []

    def noting(i: int) -> Callable[[Any, Any], Any]:
        def note(ids: Any, scores: Any) -> Any:
            begun.append(i)
            return scores

        return note

    with maskattn.Engine(model("gpt2"), max_batch=8, max_tokens=96, page_size=16) as engine:
        first = engine.submit_ids([3] * 30, max_new_tokens=20, min_new_tokens=20, logits_processor=[gate, noting(0)])
        assert gate.reached.wait(SECONDS)
        requests = [first]
        requests += [engine.submit_ids([4] * 30, max_new_tokens=30, min_new_tokens=30, logits_processor=[noting(1)])]
        requests += [engine.submit_ids([5], max_new_tokens=2, logits_processor=[noting(i)]) for i in (2, 3, 4)]
        time.sleep(0.05)
        assert engine.counts == (1, 4), "no room for the second; the others could run"
        gate.opened.set()
        for request in requests:
            request.result(SECONDS)
    assert list(dict.fromkeys(begun)) == [0, 1, 2, 3, 4]


def test_what_encoders_give_takes_room_too() -> None:
    """A source of 33 positions and 15 tokens take 4 of the 6 pages, so that the next one waits."""
    gate, alone, options = Gate(), list[bool](), {"max_new_tokens": 15}
    source = [5] * 32 + [tiny_marian.EOS]

    def watch(ids: Any, scores: Any) -> Any:
        alone.append(first.done())
        return scores

    with maskattn.Engine(model("marian"), max_tokens=96, page_size=16) as engine:
        first = engine.submit_ids(source, logits_processor=[gate], **options)
        assert gate.reached.wait(SECONDS)
        second = engine.submit_ids(source, logits_processor=[watch], **options)
        with pytest.raises(ValueError, match=r"max_tokens must be at least 112 for a source of 60 positions and 40"):
            engine.submit_ids([5] * 59 + [tiny_marian.EOS], max_new_tokens=40)
        gate.opened.set()
        (want,) = model("marian").generate_ids([source], **options)
        assert [request.result(SECONDS) for request in (first, second)] == [want, want]
    assert all(alone), "the first one has ended before"


def test_the_queue_is_limited() -> None:
    gate = Gate()
    with maskattn.Engine(model("gpt2"), max_batch=1, max_waiting=2) as engine:
        first = engine.submit_ids([3], max_new_tokens=2, logits_processor=[gate])
        assert gate.reached.wait(SECONDS)
        waiting = [engine.submit_ids([4], max_new_tokens=2) for _ in range(2)]
        with pytest.raises(queue.Full, match=r"at most max_waiting=2 requests may wait, got one more; submit it again"):
            engine.submit_ids([4])
        assert waiting[0].cancel()
        assert not waiting[0].cancel()
        assert list(waiting[0]) == []
        another = engine.submit_ids([4], max_new_tokens=2)
        gate.opened.set()
        assert first.result(SECONDS) == model("gpt2").generate_ids([[3]], max_new_tokens=2)[0]
        assert another.result(SECONDS) == waiting[1].result(SECONDS)
