"""One query row: reading keys and values counts. GB/s of them is the figure to compare."""

from collections.abc import Callable
from operator import attrgetter

import pytest

from bench.workloads import DECODE, DECODE_RAGGED, Workload

# 8192 keys and more are left to compare.py: drawing them takes longer than timing them.
WORKLOADS = [w for w in (*DECODE, *DECODE_RAGGED) if w.kv_len <= 1024]


@pytest.mark.parametrize("workload", WORKLOADS, ids=attrgetter("name"))
def test_decode(time_attention: Callable[[Workload], None], workload: Workload) -> None:
    time_attention(workload)
