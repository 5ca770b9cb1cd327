"""Padded batches, ragged inside: does padding cost anything, said as lengths or as a mask?"""

from collections.abc import Callable

import pytest

from workloads import CROSS, CROSS_MASK, ENCODER, ENCODER_MASK, Workload


@pytest.mark.parametrize("workload", [CROSS, CROSS_MASK], ids=["kv_lengths", "mask"])
def test_cross_attention(time_attention: Callable[[Workload], None], workload: Workload) -> None:
    time_attention(workload)


@pytest.mark.parametrize("workload", [ENCODER, ENCODER_MASK], ids=["kv_lengths", "mask"])
def test_encoder(time_attention: Callable[[Workload], None], workload: Workload) -> None:
    time_attention(workload)
