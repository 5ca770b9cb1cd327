"""One side in a process of its own: start-up, memory and threads are nobody else's.

    python -m bench.generation.worker SIDE CHECKPOINT DTYPE THREADS [--convert]

Requests come as lines of JSON on standard input, an answer to each goes to standard output, ``{"error": ...}`` if it
failed. A module ``with_<side>`` has ``Side(path, dtype, threads)`` with ``write(sources, tokens, beams)``, lists of new
token ids; where the library reads another format, ``convert(path, dtype)``, which makes it of the checkpoint; and for
``--accuracy``, ``logits(sources, targets)``, shape (sources, positions, vocab), or where a library does not give them
``log_probabilities(sources, targets)``, shape (sources, positions). A process may have neither maskattn nor PyTorch.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.generation import shapes
from bench.generation.exact import log_softmax_at
from bench.generation.unsupported import Unsupported


def peak_mb() -> float:
    status = Path("/proc/self/status")  # ru_maxrss would begin with what the parent had
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else float("nan")


def described(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"not installed ({error})"
    known = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
    return known.splitlines()[0][:300]


def write(side: Any, given: Any, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    written = side.write(given, request["tokens"], request["beams"])
    took = time.perf_counter() - start
    return {"seconds": took, "counts": [len(ids) for ids in written], "peak_mb": peak_mb()}


def score(side: Any, given: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Logits, if there are any, and log-probabilities of the targets go to a file."""
    targets = np.array(request["targets"])
    if not hasattr(side, "logits"):
        if not hasattr(side, "log_probabilities"):
            raise Unsupported("tells neither logits nor log-probabilities")
        np.savez(request["file"], likely=side.log_probabilities(given, targets))
        return {}
    logits = np.asarray(side.logits(given, targets), np.float32)
    np.savez(request["file"], logits=logits, likely=log_softmax_at(logits, targets))
    return {}


def bytes_read(side: Any, given: Any, request: dict[str, Any]) -> dict[str, Any]:
    step = side.bytes_of_a_step(request["lengths"], request["tokens"], request["beams"])
    return {"step": step, "weights": side.bytes_of_the_weights()}


def outside(side: Any, given: Any, request: dict[str, Any]) -> dict[str, Any]:
    return {"share": side.share_outside_the_core(given, request["tokens"], request["beams"])}


def main() -> None:
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print

    def tell(answer: dict[str, Any]) -> None:
        pipe.write(json.dumps(answer) + "\n")
        pipe.flush()

    name, path, dtype, threads = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    try:
        start = time.perf_counter()
        library = importlib.import_module(f"bench.generation.with_{name}")
        if "--convert" in sys.argv:
            getattr(library, "convert", lambda *_: None)(path, dtype)
            tell({})
            return
        side = library.Side(path, dtype, threads)
        tell({"load_s": time.perf_counter() - start})
    except BaseException as error:  # whatever another library raises
        tell({"error": described(error)})
        return
    config, jobs = shapes.settings(path), {job.__name__: job for job in (write, score, bytes_read, outside)}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            given = shapes.sources(config, tuple(request["lengths"]))
            tell(jobs[request["do"]](side, given, request))
        except Exception as error:
            tell({"error": described(error)})


if __name__ == "__main__":
    main()
