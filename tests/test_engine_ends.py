"""How requests and engines end: errors, closing, event loops, threads that do all of it at once."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_marian
from tiny_engine import POSITIONS, SECONDS, VOCAB, Gate, model, random_requests
from tiny_marian import EOS


@pytest.fixture
def engine() -> Iterator[maskattn.Engine]:
    with maskattn.Engine(model("gpt2"), max_batch=4, max_tokens=256, page_size=16) as engine:
        yield engine


def test_an_error_is_that_of_its_request(engine: maskattn.Engine) -> None:
    def wrong(ids: Any, scores: Any) -> Any:
        if ids.shape[1] == 5:
            raise RuntimeError("not today")
        return scores

    bad = engine.submit_ids([3, 4], max_new_tokens=9, logits_processor=[wrong])
    none = engine.submit_ids([3, 4], max_new_tokens=9, suppress_tokens=list(range(VOCAB)))
    good = engine.submit_ids([3, 4], max_new_tokens=9)
    with pytest.raises(RuntimeError, match="not today"):
        bad.result(SECONDS)
    with pytest.raises(RuntimeError, match="not today"):
        list(bad)
    with pytest.raises(ValueError, match="options must leave each sequence a token with a finite score"):
        none.result(SECONDS)
    assert good.result(SECONDS) == model("gpt2").generate_ids([[3, 4]], max_new_tokens=9)[0]
    error = bad._error
    assert error is not None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert not any("scheduler.py" in frame.f_code.co_filename for frame in frames), "it holds on to nothing"
    assert not bad.cancel()
    assert bad.done()
    assert not bad.cancelled()


def test_many_sources_that_cannot_be_read_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than Python's stack is deep."""
    writer, gate = model("marian"), Gate()
    with maskattn.Engine(writer, max_batch=4, max_waiting=3000) as engine:
        first = engine.submit_ids([3, EOS], max_new_tokens=5, logits_processor=[gate])
        assert gate.reached.wait(SECONDS)

        def fail(*arguments: Any) -> Any:
            raise MemoryError("no more")

        monkeypatch.setattr(type(engine._scheduler._model), "encode", fail)
        requests = [engine.submit_ids([3, EOS], max_new_tokens=5) for _ in range(2000)]
        gate.opened.set()
        for request in requests:
            with pytest.raises(MemoryError, match="no more"):
                request.result(SECONDS)
        assert len(first.result(SECONDS)) <= 5


def test_a_step_that_fails_fails_for_all_in_it_and_the_next_are_served(
    engine: maskattn.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    requests = [engine.submit_ids([3], max_new_tokens=9, logits_processor=[gate]) for _ in range(2)]
    assert gate.reached.wait(SECONDS)

    def fail(*arguments: Any) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(type(engine._scheduler._model), "logits", fail)
    gate.opened.set()
    for request in requests:
        with pytest.raises(MemoryError, match="no more"):
            request.result(SECONDS)
    assert engine._scheduler._cache.pages_in_use == 0, "although somebody has the errors"
    monkeypatch.undo()
    assert (
        engine.submit_ids([3], max_new_tokens=9).result(SECONDS)
        == model("gpt2").generate_ids([[3]], max_new_tokens=9)[0]
    )


def test_closing() -> None:
    gate = Gate()
    engine = maskattn.Engine(model("gpt2"), max_batch=1)
    requests = [engine.submit_ids([3], max_new_tokens=9, logits_processor=[gate]) for _ in range(3)]
    assert gate.reached.wait(SECONDS)
    with pytest.raises(TimeoutError, match=r"the result must be there after 0.01 s"):
        requests[0].result(0.01)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive(), "there is work to be done"
    gate.opened.set()
    closing.join(SECONDS)
    assert all(len(request.result(0)) == 9 or request.result(0)[-1] == EOS for request in requests)
    with pytest.raises(RuntimeError, match="the engine must be open for a request, got one that is closed"):
        engine.submit_ids([3])


def test_an_exception_cancels() -> None:
    gate, requests = Gate(), []

    def interrupted() -> None:
        with maskattn.Engine(model("gpt2"), max_batch=1) as engine:
            requests.extend(engine.submit_ids([3], max_new_tokens=9, logits_processor=[gate]) for _ in range(3))
            assert gate.reached.wait(SECONDS)
            threading.Timer(0.05, gate.opened.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(request.cancelled() for request in requests)


def test_an_engine_that_nobody_has_ends() -> None:
    engine = maskattn.Engine(model("gpt2"))
    request = engine.submit_ids([3], max_new_tokens=3)
    assert len(request.result(SECONDS)) > 0
    thread, gone = engine._thread, weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_event_loops(tmp_path: Path) -> None:
    writer = maskattn.load(tiny_marian.write(tmp_path))
    options: dict[str, Any] = {"max_new_tokens": 12}
    (want,), gate = writer.generate(["march 3"], **options), Gate()

    async def pieces(engine: maskattn.Engine) -> str:
        return "".join([piece async for piece in engine.submit("march 3", **options)])

    async def main() -> None:
        async with maskattn.Engine(writer) as engine:
            assert await asyncio.gather(engine.generate("march 3", **options), pieces(engine)) == [want, want]
            held = engine.submit("march 3", logits_processor=[gate], **options)
            task = asyncio.create_task(held._awaited())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert held.cancelled()
            gate.opened.set()
            with pytest.raises(CancelledError):
                await held

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"max_batch": 0}, ValueError, "max_batch must be at least 1, got 0"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens must be an int, got 1.5"),
        ({"page_size": 20}, ValueError, "page_size must be a multiple of 16, got 20"),
    ],
)
def test_wrong_limits(asked: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        maskattn.Engine(model("gpt2"), **asked)


@pytest.mark.parametrize(
    ("source", "asked", "error", "message"),
    [
        ([], {}, ValueError, r"sources\[0\] must hold at least one token id"),
        ([3], {"num_beams": 2}, ValueError, "options for an Engine must ask for one sequence, .* got beams"),
        ([3], {"max_new_tokens": POSITIONS + 1}, ValueError, "max_new_tokens must be in"),
        ([3] * 8, {"max_new_tokens": 30}, ValueError, "must be at most 32 together, got 37; pass a smaller"),
        ([3], {"temperatur": 2}, TypeError, "did you mean temperature"),
    ],
)
def test_refusals(source: list[int], asked: dict[str, Any], error: type[Exception], message: str) -> None:
    with (
        maskattn.Engine(model("gpt2"), max_tokens=32, page_size=16) as engine,
        pytest.raises(error, match=message),
    ):
        engine.submit_ids(source, **asked)


def test_sixteen_threads_that_do_everything_at_once() -> None:
    """No deadlock: submitting, iterating, cancelling, waiting, refused ones, and a close in the middle of it."""
    sources, options = random_requests(16, 7)
    counts = {"done": 0, "cancelled": 0, "refused": 0}
    lock = threading.Lock()

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def work(i: int) -> None:
        rng = np.random.default_rng(i)
        for _ in range(30):
            try:
                request = engine.submit_ids(sources[i], **options[i])
            except (queue.Full, RuntimeError):
                count("refused")
                continue
            kind = rng.integers(4)
            if kind == 0:
                time.sleep(rng.random() * 0.005)
                request.cancel()
            if kind == 1:
                next(iter(request), None)
                request.cancel()
            if kind == 2:
                list(request)
            try:
                request.result(SECONDS)
                count("done")
            except CancelledError:
                count("cancelled")

    engine = maskattn.Engine(model("gpt2"), max_batch=6, max_tokens=256, max_waiting=8, prefill=8, page_size=16)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    while sum(counts.values()) < 16 * 25:
        time.sleep(0.01)
        assert any(thread.is_alive() for thread in threads)
    engine.close(cancel=True)
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert sum(counts.values()) == 16 * 30
    assert min(counts["done"], counts["cancelled"]) > 20, counts
    assert engine._scheduler._cache.pages_in_use == 0


def test_requests_that_have_ended_leave_nothing_behind() -> None:
    sources, options = random_requests(300, 8)
    with maskattn.Engine(model("gpt2"), max_batch=16, max_tokens=512, page_size=16) as engine:

        def serve() -> tuple[int, int]:
            requests = [engine.submit_ids(source, **asked) for source, asked in zip(sources, options, strict=True)]
            for request in requests[::7]:
                request.cancel()
            for i, request in enumerate(requests):
                assert i % 7 == 0 or request.result(SECONDS)
            del requests, request
            gc.collect()
            return len(gc.get_objects()), engine._scheduler._cache.pages_in_use

        serve()
        (objects, pages), (later, pages_later) = serve(), serve()
        assert later < objects + 200
        assert max(pages, pages_later) <= 512 // 16
        assert len(engine._scheduler._prefixes) <= 32
