"""Who is read and who is written next: the work of an engine, all of which one thread does."""

from __future__ import annotations

import queue
import traceback
from collections import deque
from concurrent.futures import CancelledError
from threading import Condition
from typing import Any

import numpy as np

from maskattn.cache import KVCache
from maskattn.decoder.arrays import IntArray
from maskattn.decoder.engine.prefixes import Prefixes
from maskattn.decoder.engine.request import Request
from maskattn.decoder.engine.running import Running
from maskattn.decoder.engine.task import Reading, Task
from maskattn.decoder.model import Transformer


class Scheduler:
    """First come, first served; whoever is written has room for all that it may become, so nobody is put back.

    Args:
        cache: without sequences; its pool has ``pages`` pages.
        batch: the most sequences that are written together. ``pages`` are for what encoders give as well.
        waiting: the most requests that wait.
        chunk: how many tokens are read between two steps of those that are being written.
    """

    def __init__(self, model: Transformer, cache: KVCache, pages: int, batch: int, waiting: int, chunk: int) -> None:
        self._model, self._pages, self._most_rows, self._most_waiting = model, pages, batch, waiting
        # Where keys turn by a sequence's length, a beginning is read otherwise alone than with what follows it.
        self._chunk = None if model.length_shows else chunk
        self._budget = chunk
        self._prefixes = Prefixes(2 * batch if model.encoder is None and not model.length_shows else 0)
        self._cache, self._running = cache, Running(model, cache.empty())
        self._tasks: list[Task] = []  # of the rows that run
        self._reading: Reading | None = None
        self._again: deque[Task] = deque()  # to be read once more
        self._waiting: deque[Task] = deque()
        self._changed = Condition()  # guards what other threads touch: _waiting, _closed and _cancelled
        self._closed = self._cancelled = False
        self._full = False  # the next one has been looked at, and there is no room until someone leaves

    # From any thread.

    def submit(self, task: Task) -> None:
        """Raises RuntimeError: closed. queue.Full: as many wait as may."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine must be open for a request, got one that is closed; make another")
            if len(self._waiting) >= self._most_waiting:
                raise queue.Full(
                    f"at most max_waiting={self._most_waiting} requests may wait, got one more; submit it again when "
                    "others have ended, or make an Engine with a larger max_waiting"
                )
            self._waiting.append(task)
            self._changed.notify()

    def drop(self, request: Request[Any, Any]) -> None:
        """A request that was cancelled waits no longer; one that runs leaves after the step."""
        with self._changed:
            self._waiting = deque(task for task in self._waiting if task.request is not request)
            self._full = False  # it may have been the one for which there was no room
            self._changed.notify()

    def close(self, *, cancel: bool) -> None:
        """No request more; those that there are end by themselves, or are cancelled."""
        with self._changed:
            self._closed, dropped = True, []
            if cancel:
                self._cancelled, dropped = True, list(self._waiting)
                self._waiting.clear()
            self._changed.notify()
        for task in dropped:
            task.request.end(error=CancelledError())

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests are worked on, and how many wait."""
        return len(self._tasks) + len(self._again) + (self._reading is not None), len(self._waiting)

    # In the engine's own thread.

    def run(self) -> None:
        """Work until closed, and done with what was submitted before."""
        while self._has_work():
            if self._cancelled:
                self._give_up(CancelledError())
                continue
            try:
                self._leave([row for row, task in enumerate(self._tasks) if not task.request.done()])
                self._read()
                if self._tasks:
                    self._step()
            except BaseException as error:
                self._give_up(_alone(error))
        self._prefixes = Prefixes(0)

    def _has_work(self) -> bool:
        def any_work() -> bool:
            return bool(self._waiting or self._tasks or self._reading or self._again)

        with self._changed:
            self._changed.wait_for(lambda: any_work() or self._closed)
            return any_work()

    def _read(self) -> None:
        """Some tokens of those who are next; whoever is read to the end joins the batch."""
        budget = self._budget
        while budget > 0 and (self._reading is not None or self._begin()):
            assert self._reading is not None
            reading, task = self._reading, self._reading.task
            if task.request.done():  # cancelled
                self._reading = None
                continue
            before = reading.at
            try:
                hidden = reading.advance(self._model, self._chunk)
            except Exception as error:
                self._reading = None
                _release(reading.cache)
                task.request.end(error=_alone(error))
                continue
            budget -= reading.at - before + reading.memory_len
            if hidden is not None:
                self._keep(task, reading.cache, 0)
                self._running.join(reading.cache, reading.memory, hidden)
                self._tasks.append(task)
                self._reading = None

    def _begin(self) -> bool:
        """Begin to read the next one, if there is one and there is room for it."""
        while (found := self._next()) is not None:
            task, cache = found
            try:
                memory = None if self._model.encoder is None else self._model.encode([task.source])
            except Exception as error:
                task.request.end(error=_alone(error))
                continue
            self._reading = Reading(task, cache, memory)
            return True
        return False

    def _next(self) -> tuple[Task, KVCache] | None:
        """Who is next, and a cache with what has been read of it; None: nobody, or there is no room."""
        if self._full or len(self._tasks) >= self._most_rows:
            return None
        if self._again:
            return self._again.popleft(), self._cache.empty(1)
        with self._changed:
            if not self._waiting:
                return None
            task = self._waiting[0]
        cache = self._room(task)
        self._full = cache is None
        with self._changed:
            if cache is None or not self._waiting or self._waiting[0] is not task:
                return None
            self._waiting.popleft()
        return task, cache

    def _room(self, task: Task) -> KVCache | None:
        """A cache for a task, with what it shares with others; None if there are not pages enough yet."""
        cache = self._prefixes.find(np.array(task.ids)) or self._cache.empty(1)
        needed = self._pages_of(task.most) - self._pages_of(int(cache[0].lengths[0]))
        others = [*self._tasks, *self._again]
        promised = sum(self._pages_of(other.most) for other in others)
        promised -= int(self._pages_of(self._running.cache[0].lengths).sum())
        # Of the same size, but in arrays of their own.
        needed += sum(self._pages_of(some.source_len) for some in [task, *others])
        while needed + promised + self._cache.pages_in_use > self._pages:
            if not self._prefixes.forget():
                return None
        return cache

    def _step(self) -> None:
        """A token more for everybody."""
        tasks, hidden = self._tasks, self._running.hidden
        scored = [row for row, task in enumerate(tasks) if not task.writer.takes_best]
        allowed = self._best_allowed() if scored else None
        if allowed is not None:
            scores, best = {}, dict(enumerate(allowed))
        else:
            others = [row for row, task in enumerate(tasks) if task.writer.takes_best]
            scores = dict(zip(scored, self._model.logits(hidden[scored]), strict=True)) if scored else {}
            best = dict(zip(others, self._model.best(hidden[others]), strict=True)) if others else {}
        stay: list[int] = []
        for row, task in enumerate(tasks):
            writer = task.writer
            try:
                written = writer.take(scores[row][None]) if row in scores else writer.append(best[row][None])
            except Exception as error:  # of a function of the user's, or options that leave no token
                task.request.end(error=_alone(error))
                continue
            task.tell(written)
            if written.open[0]:
                stay.append(row)
            else:
                self._keep(task, self._running.cache, row)
                task.request.end(made=writer.results()[0])
        self._leave(stay)
        if (switch := self._model.switch) is not None:
            self._again += [task for task in self._tasks if len(task.ids) == switch + 1]
            self._leave([row for row, task in enumerate(self._tasks) if len(task.ids) != switch + 1])
        if self._tasks:
            self._running.append(np.array([task.ids[-1] for task in self._tasks]))

    def _best_allowed(self) -> IntArray | None:
        """Everybody's best token, if options at most take some away; None: somebody needs scores."""
        forbidden: list[set[int]] = []
        for task in self._tasks:
            own = [set[int]()] if task.writer.takes_best else task.writer.forbidden()
            if own is None:
                return None
            forbidden += own
        found = self._model.most_probable_allowed(self._running.hidden, 1, forbidden)
        return None if found is None else found[1][:, 0]

    def _leave(self, stay: list[int]) -> None:
        """Only the rows ``stay`` go on."""
        if len(stay) < len(self._tasks):
            order = self._running.leave(np.array(stay, np.int64))
            self._tasks = [self._tasks[row] for row in order]
            self._full = False

    def _keep(self, task: Task, cache: KVCache, row: int) -> None:
        """What has been read of a task may serve others."""
        if self._prefixes.most:
            self._prefixes.keep(np.array(task.ids[: int(cache[0].lengths[row])]), cache.fork([row]))

    def _give_up(self, error: BaseException) -> None:
        """A step has failed, for all who were in it; or all are cancelled."""
        reading, failed = self._reading, [*self._tasks, *self._again]
        _release(self._running.cache)
        if reading is not None:
            _release(reading.cache)
            failed.append(reading.task)
        self._tasks, self._reading, self._full = [], None, False
        self._again.clear()
        self._running = Running(self._model, self._cache.empty())
        for task in failed:
            task.request.end(error=error)

    def check_fits(self, most: int, source_len: int) -> None:
        """Raises ValueError: there would never be room for a task that may become so long."""
        if (pages := self._pages_of(most) + self._pages_of(source_len)) > self._pages:
            size = self._cache[0].page_size
            raise ValueError(
                f"max_tokens must be at least {pages * size} for a source of {source_len} positions and {most} tokens, "
                f"in pages of {size}, got room for {self._pages * size}; make an Engine with a larger max_tokens"
            )

    def _pages_of(self, tokens: Any) -> Any:
        return -(-tokens // self._cache[0].page_size)


def _release(cache: KVCache) -> None:
    """Its pages, now: whoever holds an error may hold the cache. A step that failed may have left layers unlike."""
    for layer in cache:
        layer.reorder(np.zeros(0, np.int64))


def _alone(error: BaseException) -> BaseException:
    """An error that whoever is told may keep: it holds on to nothing of the engine's."""
    if error.__traceback__ is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = error.__traceback__.tb_next
    return error
