"""Biases by distance are those of transformers' models: T5's buckets, BLOOM's slopes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.models.bloom.modeling_bloom import build_alibi_tensor  # noqa: E402 - after the skips
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

from maskattn import ALiBi, RelativeBias  # noqa: E402


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets", [4, 6, 8, 16, 32, 64])
@pytest.mark.parametrize("max_distance", [40, 64, 128, 200, 256, 1000])
def test_t5_buckets(bidirectional: bool, buckets: int, max_distance: int) -> None:
    bias = RelativeBias(np.zeros((buckets, 2)), bidirectional, max_distance)
    distance = np.arange(-3 * max_distance, 3 * max_distance)
    want = T5Attention._relative_position_bucket(
        torch.tensor(distance), bidirectional=bidirectional, num_buckets=buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(bias.bucket(distance), want.numpy())


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 32])
def test_bloom_slopes(heads: int) -> None:
    want = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)[:, 0, 1].numpy()
    np.testing.assert_allclose(ALiBi.for_heads(heads).slopes, want, rtol=1e-6)
