"""Threads: ours under a call, the caller's around it, and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn.masks import Causal, Dense, Padding, SlidingWindow
from strategies import normal

needs_openmp = pytest.mark.skipif(not maskattn.info()["openmp"], reason="built without OpenMP")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in /proc")


def python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_many_python_threads_at_once(isa: str, rng: np.random.Generator) -> None:
    calls: list[dict[str, Any]] = []
    for n, mask in [(1, None), (40, Causal()), (300, SlidingWindow(left=30)), (7, Padding([2, 900])), (150, ~Causal())]:
        q, k, v = normal(rng, 2, 4, n, 24), normal(rng, 2, 2, 1000, 24), normal(rng, 2, 2, 1000, 40)
        calls += [{"q": q, "k": k, "v": v, "mask": mask, "threads": threads} for threads in (1, 2, 3)]
    calls += [{**calls[3], "mask": Dense(rng.random((40, 1000)) < 0.5).plan(40, 1000), "threads": 2}]
    want = [maskattn.attention(**call).tobytes() for call in calls]
    order = [int(i) for _ in range(6) for i in rng.permutation(len(calls))]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: maskattn.attention(**calls[i]).tobytes(), order))
    assert [want[i] for i in order] == got


def test_one_plan_in_many_threads(rng: np.random.Generator) -> None:
    mask = Causal() & ~Padding(3)  # its expression is built on first use, here by several threads at once
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: mask.to_bool(200, 300).tobytes(), range(40)))
    assert set(got) == {mask.to_bool(200, 300).tobytes()}


@pytest.mark.parametrize("threads", [1, 2])
def test_python_runs_while_a_call_does(threads: int, rng: np.random.Generator) -> None:
    q = normal(rng, 1, 8, 2048, 64, dtype=np.float64)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        begin = time.perf_counter()
        maskattn.attention(q, q, q, threads=threads)
        end = time.perf_counter()
    finally:
        stop.set()
        ticker.join()
    middle = begin + 0.1 * (end - begin), end - 0.1 * (end - begin)
    assert sum(middle[0] < t < middle[1] for t in ticks) >= 3


FORK = """
import os, signal, sys, warnings
import numpy as np
import maskattn
from maskattn.masks import Causal

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking a process with threads. It is meant.
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 8, 500, 32), dtype=np.float32) for _ in range(3))

def attend(_=None):
    return maskattn.attention(q, k, v, mask=Causal(), threads=2).tobytes()

if __name__ == "__main__":
    want = attend()  # a team of threads runs from here on
"""

OS_FORK = (
    FORK
    + """
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for threads that were not forked would wait for ever
        os._exit(0 if attend() == want and attend() == want else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert attend() == want
    print("done")
"""
)

MULTIPROCESSING = (
    FORK
    + """
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(attend, range(4)).get(timeout=60) == [want] * 4
    print("done")
"""
)


@needs_fork
@pytest.mark.parametrize("script", [OS_FORK, MULTIPROCESSING], ids=["os.fork", "multiprocessing"])
def test_a_child_forked_after_a_threaded_call_can_call(script: str) -> None:
    assert python(script) == "done"


@needs_fork
def test_a_child_forked_before_the_first_call_may_use_threads() -> None:
    script = FORK.replace("want = attend()", "want = None") + (
        "    child = os.fork()\n"
        "    got = attend()\n"
        "    if child == 0:\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print('done')\n"
    )
    assert python(script) == "done"


@needs_openmp
def test_set_num_threads() -> None:
    before = maskattn.num_threads()
    try:
        for count in (1, 3, before):
            maskattn.set_num_threads(count)
            assert maskattn.num_threads() == maskattn.info()["threads"] == count
    finally:
        maskattn.set_num_threads(before)


@needs_openmp
@pytest.mark.parametrize("count", [1, 3])
def test_omp_num_threads(count: int) -> None:
    script = "import maskattn; print(maskattn.num_threads(), maskattn.info()['threads'])"
    assert python(script, OMP_NUM_THREADS=str(count)) == f"{count} {count}"


COUNT = """
import os
import numpy as np
import maskattn

def call(heads, q_len, kv_len, **options):
    q, k = (np.ones((1, heads, n, 64), np.float32) for n in (q_len, kv_len))
    before = len(os.listdir("/proc/self/task"))  # NumPy's BLAS may have threads of its own
    maskattn.attention(q, k, k, **options)
    return len(os.listdir("/proc/self/task")) - before

"""


@needs_proc
@needs_openmp
def test_small_calls_stay_on_the_calling_thread() -> None:
    assert python(COUNT + "print(call(8, 1, 16, threads=2), call(1, 8, 8, threads=2))") == "0 0"


@needs_proc
@needs_openmp
def test_large_calls_use_the_threads_they_are_given() -> None:
    assert python(COUNT + "print(call(8, 512, 512, threads=3))") == "2"  # and the calling thread
    assert python(COUNT + "print(call(1, 1, 20000, threads=2))") == "1"  # one row: split over keys
    assert python(COUNT + "print(call(8, 512, 512, threads=1))") == "0"
    assert python(COUNT + "maskattn.set_num_threads(1); print(call(8, 512, 512))") == "0"
    assert python(COUNT + "print(call(8, 512, 512))", OMP_NUM_THREADS="2") == "1"


@pytest.mark.skipif("MASKATTN_ISA" in os.environ, reason="the instruction set is forced")
def test_calls_under_way_finish_with_their_instruction_set(rng: np.random.Generator) -> None:
    q, k, v = normal(rng, 2, 4, 200, 33), normal(rng, 2, 4, 700, 33), normal(rng, 2, 4, 700, 21)
    before, runnable, results = maskattn.info()["isa"], maskattn.runnable_isas(), {}
    try:
        for name in runnable:
            maskattn.set_isa(name)
            results[name] = maskattn.attention(q, k, v, mask=Causal()).tobytes()
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(maskattn.attention, q, k, v, mask=Causal(), threads=1) for _ in range(60)]
            while not all(call.done() for call in calls):
                for name in runnable:
                    maskattn.set_isa(name)
        assert {call.result().tobytes() for call in calls} <= set(results.values())
    finally:
        maskattn.set_isa(before)
