"""What has been submitted to an engine: its tokens as they come, its result, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from threading import Condition
from typing import Any, Generic, TypeVar

from maskattn.decoder.generate import Generated
from maskattn.decoder.stream import Tokens

Item = TypeVar("Item")  # of an iteration
Whole = TypeVar("Whole")  # of a result


class Request(Generic[Item, Whole]):
    """A handle of what an engine writes; of any thread, and of any number of them.

    Iterate it for what comes, from the beginning and as often as you like: pieces of text for a text, else tokens.
    ``async for`` and ``await`` do the same in an event loop, of which a task that is cancelled cancels its request.
    """

    def __init__(
        self,
        show: Callable[[], Callable[[Tokens], list[Item]]],
        whole: Callable[[Generated], Whole],
        cancel: Callable[[Request[Any, Any]], None],
    ) -> None:
        self._show, self._whole = show, whole
        self._tell: Callable[[Request[Any, Any]], None] | None = cancel
        self._changed = Condition()
        self._tokens: list[Tokens] = []
        self._made: Generated | None = None
        self._error: BaseException | None = None
        self._listeners: list[Callable[[], object]] = []

    def result(self, timeout: float | None = None) -> Whole:
        """Wait for the end: the text, or the ids as ``Generated``.

        Raises:
            TimeoutError: it is not there after ``timeout`` seconds.
            concurrent.futures.CancelledError: the request was cancelled.
            Exception: what went wrong with this request.
        """
        with self._changed:
            if not self._changed.wait_for(self.done, timeout):
                raise TimeoutError(f"the result must be there after {timeout} s, got none; wait longer, or cancel()")
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._whole(self._made)

    def cancel(self) -> bool:
        """No more of it: iterations end. Returns whether that changed anything; False for what had ended."""
        tell = self._tell
        changed = self.end(error=CancelledError())
        if changed and tell is not None:
            tell(self)
        return changed

    def done(self) -> bool:
        """Whether it has ended: it is whole, cancelled, or has failed."""
        return self._made is not None or self._error is not None

    def cancelled(self) -> bool:
        return isinstance(self._error, CancelledError)

    def __iter__(self) -> Iterator[Item]:
        show, at = self._show(), 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._ready, at))
            if (new := self._next(at)) is None:
                return
            at += 1
            yield from show(new)

    async def __aiter__(self) -> AsyncIterator[Item]:
        show, at = self._show(), 0
        with _Wakes(self) as changed:
            while True:
                changed.clear()
                if not self._ready(at):
                    await self._wait(changed)
                    continue
                if (new := self._next(at)) is None:
                    return
                at += 1
                for item in show(new):
                    yield item

    def __await__(self) -> Generator[Any, None, Whole]:
        return self._awaited().__await__()

    async def _awaited(self) -> Whole:
        with _Wakes(self) as changed:
            while not self.done():
                changed.clear()
                if not self.done():
                    await self._wait(changed)
        return self.result()

    async def _wait(self, changed: asyncio.Event) -> None:
        try:
            await changed.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _ready(self, at: int) -> bool:
        return len(self._tokens) > at or self.done()

    def _next(self, at: int) -> Tokens | None:
        """The tokens number ``at``, or the end: None where the request is whole or cancelled."""
        if self.cancelled():
            return None
        if at < len(self._tokens):
            return self._tokens[at]
        if self._error is not None:
            raise self._error
        return None

    # What the engine does.

    def give(self, tokens: Tokens) -> None:
        """More tokens."""
        with self._changed:
            if not self.done():
                self._tokens.append(tokens)
            self._changed.notify_all()
        self._call_listeners()

    def end(self, made: Generated | None = None, error: BaseException | None = None) -> bool:
        """No more tokens. Returns whether it had not ended before."""
        with self._changed:
            if self.done():
                return False
            self._made, self._error, self._tell = made, error, None  # an engine may go before its requests
            self._changed.notify_all()
        self._call_listeners()
        return True

    def _call_listeners(self) -> None:
        for listener in tuple(self._listeners):
            listener()


class _Wakes:
    """An event of the running loop, set whenever there is news of a request."""

    def __init__(self, request: Request[Any, Any]) -> None:
        self._listeners = request._listeners
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        self._listeners.append(self._wake)
        return self._event

    def __exit__(self, *exception: object) -> None:
        self._listeners.remove(self._wake)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._event.set)
