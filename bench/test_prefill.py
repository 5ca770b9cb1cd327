"""Many query rows: the arithmetic counts. GFLOP/s of visible pairs is the figure to compare."""

from collections.abc import Callable
from operator import attrgetter

import pytest

from bench.workloads import (
    CAUSAL_512,
    CAUSAL_CHUNK,
    CAUSAL_GQA_512,
    DOCUMENTS_2048,
    PREFIX_LM_1024,
    WINDOW_2048,
    Workload,
)

# Longer ones are left to compare.py: the baseline kernels would need minutes for them.
PREFILL = (CAUSAL_512, CAUSAL_CHUNK, CAUSAL_GQA_512, PREFIX_LM_1024, WINDOW_2048, DOCUMENTS_2048)


@pytest.mark.parametrize("workload", PREFILL, ids=attrgetter("name"))
def test_prefill(time_attention: Callable[[Workload], None], workload: Workload) -> None:
    time_attention(workload)
