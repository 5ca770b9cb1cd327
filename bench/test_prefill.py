"""Many query rows: the arithmetic counts. GFLOP/s of visible pairs is the figure to compare."""

from collections.abc import Callable
from operator import attrgetter

import pytest

from workloads import CAUSAL_512, CAUSAL_2048, CAUSAL_CHUNK, CAUSAL_GQA, PREFIX_LM, Workload

# The whole of causal 8192 is left to ratios.py: the baseline kernels would need minutes for it.
PREFILL = (CAUSAL_512, CAUSAL_2048, CAUSAL_CHUNK, CAUSAL_GQA, PREFIX_LM)


@pytest.mark.parametrize("workload", PREFILL, ids=attrgetter("name"))
def test_prefill(time_attention: Callable[[Workload], None], workload: Workload) -> None:
    time_attention(workload)
