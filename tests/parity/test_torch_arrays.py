"""PyTorch tensors as arguments of attention(), bfloat16 too, and as its result."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import maskattn  # noqa: E402 - after the skip
from maskattn.masks import Causal  # noqa: E402


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_in_and_out(dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tolerance: dict[str, Any] = {"float32": 4e-6, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
    shape = (2, 33, 4, 16)
    q, k, v = (torch.randn(shape, generator=generator).to(getattr(torch, dtype)).transpose(1, 2) for _ in range(3))
    got, lse = maskattn.attention(q, k, v, mask=Causal(), return_lse=True, like=q)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == q.dtype
    assert lse.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance[dtype])
    out = torch.empty_like(want, memory_format=torch.contiguous_format)
    assert maskattn.attention(q, k, v, mask=Causal(), out=out) is out
    torch.testing.assert_close(out, got, rtol=0, atol=0)
    keep = torch.ones(33, 33, dtype=torch.bool).tril()
    torch.testing.assert_close(maskattn.attention(q, k, v, mask=keep, like=q), got, rtol=0, atol=0)


def test_tensors_that_require_grad_say_detach() -> None:
    q = torch.zeros(1, 1, 2, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"^q must not require grad.*q\.detach\(\)"):
        maskattn.attention(q, q, q)
