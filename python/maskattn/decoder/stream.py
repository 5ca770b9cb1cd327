"""What is written, as it comes: tokens or pieces of text, and an iterator over them that can be stopped."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from threading import Lock
from typing import Generic, TypeVar

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.generate import Generated, Written
from maskattn.decoder.group import Group


class Tokens(list[int]):
    """Token ids that a source has got, usually one.

    Attributes:
        source: the number of the source, from 0.
        retracted: how many tokens at the end of what there was are taken back first; 0 but under beams.
        log_probabilities: as in ``Generated``, of these tokens.
        finished: whether these are its last ones; under beams that is not known.
    """

    source: int = 0
    retracted: int = 0
    finished: bool = False
    log_probabilities: FloatArray | None = None


class Piece(str):
    """Characters that a source has got; none is ever split, whatever it is made of.

    Attributes:
        source: the number of the source, from 0.
        retracted: how many characters at the end of what there was are taken back first; 0 but under beams.
    """

    source: int = 0
    retracted: int = 0


T = TypeVar("T")


class Stream(Generic[T]):
    """An iterator that works while it is asked for more: who leaves the loop ends the work."""

    def __init__(self, work: Generator[T | None, None, None]) -> None:
        self._work, self._closed, self._busy = work, False, Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._busy:
            while not self._closed:
                item = next(self._work)  # None: a step has gone by, and there is nothing to show
                if item is not None and not self._closed:
                    return item
            self._work.close()
            raise StopIteration

    def close(self) -> None:
        """No more work. From any thread: a step that another one is in ends first, and its loop is over."""
        self._closed = True
        if self._busy.acquire(blocking=False):
            self._work.close()
            self._busy.release()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def as_written(
    work: Generator[Written, None, list[Generated]], numbers: Sequence[int]
) -> Generator[Tokens, None, list[list[Generated]]]:
    """The tokens of a search that takes none back; ``numbers``: of the batch's sources. Returns what ``work`` does."""
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return [[ids] for ids in end.value]
        for i, (row, token) in enumerate(zip(step.rows.tolist(), step.tokens.tolist(), strict=True)):
            tokens = Tokens([token])
            tokens.source, tokens.finished = numbers[row], not step.open[i]
            if step.log_probabilities is not None:
                tokens.log_probabilities = step.log_probabilities[i : i + 1].copy()
            yield tokens


def ahead(
    work: Generator[list[Group], None, list[list[Generated]]], numbers: Sequence[int]
) -> Generator[Tokens, None, list[list[Generated]]]:
    """Of a search with beams the sequence that is ahead; as :func:`as_written`."""
    shown: dict[int, IntArray] = {}
    while True:
        try:
            groups = next(work)
        except StopIteration as end:
            made: list[list[Generated]] = end.value
            yield from _changes(shown, {n: np.array(ids, np.int64) for n, (ids, *_) in zip(numbers, made, strict=True)})
            return made
        best: dict[int, tuple[float, IntArray]] = {}
        for group in groups:
            one = group.best()
            if group.row not in best or one[0] > best[group.row][0]:
                best[group.row] = one
        yield from _changes(shown, {numbers[row]: ids for row, (_, ids) in best.items()})


def _changes(shown: dict[int, IntArray], best: dict[int, IntArray]) -> Iterator[Tokens]:
    for number, ids in best.items():
        old = shown.get(number, ids[:0])
        length = min(old.size, ids.size)
        differ = np.flatnonzero(old[:length] != ids[:length])
        same = int(differ[0]) if differ.size else length
        tokens = Tokens(ids[same:].tolist())
        tokens.source, tokens.retracted = number, old.size - same
        shown[number] = ids
        if tokens or tokens.retracted:
            yield tokens
