"""Sparse masks over long sequences: is time proportional to what is seen, not to q_len x kv_len?"""

from collections.abc import Callable

from workloads import PACKED, SLIDING_WINDOW, Workload


def test_sliding_window(time_attention: Callable[[Workload], None]) -> None:
    time_attention(SLIDING_WINDOW)


def test_documents(time_attention: Callable[[Workload], None]) -> None:
    time_attention(PACKED)
