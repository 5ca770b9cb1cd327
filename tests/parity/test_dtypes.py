"""float32, float16 and bfloat16 against PyTorch's SDPA: who is nearer to the float64 oracle."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import maskattn  # noqa: E402 - after the skip
import oracle  # noqa: E402
from maskattn.masks import Causal  # noqa: E402
from strategies import normal  # noqa: E402

SHAPES = [  # batch, heads, q_len, kv_len, head_dim, causal
    (1, 8, 512, 512, 64, True),
    (2, 4, 1, 1000, 64, False),
    (1, 2, 300, 300, 128, True),
    (2, 8, 64, 64, 32, False),
    (1, 2, 128, 2048, 80, False),
]


def tensor(array: Any) -> Any:
    return torch.from_numpy(array.astype(np.float32)).to(getattr(torch, array.dtype.name))


@pytest.mark.parametrize(
    ("dtype", "most"), [(np.float32, 1.0), (np.float16, 1.1), (ml_dtypes.bfloat16, 1.1)], ids=["f32", "f16", "bf16"]
)
def test_errors_are_no_larger_than_those_of_sdpa(isa: str, dtype: Any, most: float, rng: np.random.Generator) -> None:
    """Relative norm, over all shapes together: without fused multiply-add, single small ones come out even."""
    ours = theirs = 0.0
    for batch, heads, q_len, kv_len, head_dim, causal in SHAPES:
        q, k, v = (normal(rng, batch, heads, n, head_dim, dtype=dtype) for n in (q_len, kv_len, kv_len))
        mask = Causal() if causal else None
        want, _, _ = oracle.attention(q, k, v, oracle.visible(mask, q_len, kv_len, batch=batch, heads=heads))
        got = maskattn.attention(q, k, v, mask=mask).astype(np.float64)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        reference = sdpa(tensor(q), tensor(k), tensor(v), is_causal=causal).double().numpy()
        scale = np.linalg.norm(want)
        ours += float(np.linalg.norm(got - want) / scale) ** 2
        theirs += float(np.linalg.norm(reference - want) / scale) ** 2
    assert ours**0.5 <= most * theirs**0.5
