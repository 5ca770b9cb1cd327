"""How long the core runs: a clock around each of its functions and methods."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from maskattn import _core


@dataclass
class Clock:
    """Seconds: of everything, and of what ran inside the core."""

    whole: float = 0.0
    inside: float = 0.0
    depth: int = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:  # the core may call Python that calls the core
                    self.inside += time.perf_counter() - start

        return timed


@contextmanager
def watched() -> Iterator[Clock]:
    """Measures what happens in the block. Two readings of a clock a call are added to what runs outside the core."""
    clock = Clock()
    replaced = []
    functions = {id(f): f for f in vars(_core).values() if callable(f) and not isinstance(f, type)}
    for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "maskattn"]:
        for name, value in list(vars(module).items()):
            if id(value) in functions:
                replaced.append((module, name, value))
    for kind in [value for value in vars(_core).values() if isinstance(value, type)]:
        for name, value in list(vars(kind).items()):
            if callable(value) and not name.startswith("_"):
                replaced.append((kind, name, value))
    for place, name, value in replaced:
        setattr(place, name, clock.around(value))
    start = time.perf_counter()
    try:
        yield clock
    finally:
        clock.whole = time.perf_counter() - start
        for place, name, value in replaced:
            setattr(place, name, value)
