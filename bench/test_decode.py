"""One query row: reading keys and values counts. GB/s of them is the figure to compare."""

from collections.abc import Callable
from operator import attrgetter

import pytest

from workloads import DECODE, DECODE_RAGGED, Workload

# 32768 keys are left to ratios.py: drawing them takes longer than timing them.
WORKLOADS = [*(w for w in DECODE if w.kv_len <= 8192), DECODE_RAGGED]


@pytest.mark.parametrize("workload", WORKLOADS, ids=attrgetter("name"))
def test_decode(time_attention: Callable[[Workload], None], workload: Workload) -> None:
    time_attention(workload)
