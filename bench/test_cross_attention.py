"""Padded batches, ragged inside: does padding cost anything, said as lengths or as a mask?"""

from collections.abc import Callable
from operator import attrgetter

import pytest

from bench.workloads import CROSS, CROSS_MASK, ENCODER, ENCODER_MASK, Workload


@pytest.mark.parametrize("workload", [CROSS, CROSS_MASK, ENCODER, ENCODER_MASK], ids=attrgetter("name"))
def test_cross_attention(time_attention: Callable[[Workload], None], workload: Workload) -> None:
    time_attention(workload)
