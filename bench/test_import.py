"""What ``import maskattn`` costs a process that has NumPy already."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

SCRIPT = """
import time, numpy
begin = time.perf_counter()
import maskattn
print(time.perf_counter() - begin)
"""


def test_import(benchmark: Any) -> None:
    """Seconds in ``extra_info["import_s"]`` (the least of several); the process around it is not of interest."""

    def once() -> float:
        return float(subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout)

    times: list[float] = []
    benchmark.pedantic(lambda: times.append(once()), rounds=12)
    benchmark.extra_info["import_s"] = min(times)
