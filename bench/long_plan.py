"""What a plan of a million positions costs, in a process of its own: seconds, its bytes, and how far memory rises.

python -m bench.long_plan
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from contextlib import suppress
from pathlib import Path

import maskattn
from bench.workloads import WINDOW, document_ids
from maskattn.masks import Causal, Documents, SlidingWindow

POSITIONS = 1 << 20


def resident_mb(what: str) -> float | None:
    """VmRSS (now) or VmHWM (at most so far) of this process; Linux only (proc_pid_status(5))."""
    try:
        found = re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 / 1e6 if found else None


def measure(positions: int, rounds: int) -> dict[str, float | None]:
    """Memory of the first plan, median seconds of ``rounds``; from document ids to the plan."""
    ids = document_ids(positions)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (proc_pid_clear_refs(5))
    before = resident_mb("VmRSS")
    seconds = []
    for round_ in range(rounds):
        start = time.perf_counter()
        plan = (Causal() & SlidingWindow(WINDOW - 1) & Documents(ids)).plan(positions, positions)
        seconds.append(time.perf_counter() - start)
        if round_ == 0:
            peak = resident_mb("VmHWM")
    return {
        "seconds": statistics.median(seconds),
        "plan_mb": plan.nbytes / 1e6,
        "growth_mb": None if before is None or peak is None else peak - before,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    maskattn.set_num_threads(args.threads)
    print(json.dumps(measure(args.positions, args.rounds)))
