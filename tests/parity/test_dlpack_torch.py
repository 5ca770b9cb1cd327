"""PyTorch's tensors come in, and results go out as such, over the same memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import maskattn  # noqa: E402 - after the skip
from maskattn.interop import borrow, like  # noqa: E402
from maskattn.masks import Causal  # noqa: E402

FLOATS = {
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
CUTS = {
    "whole": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2),
    "offset": lambda x: x[1:, :, ::2, 3:],
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1, -1),
    "no rows": lambda x: x[:, :, :0],
    "scalar": lambda x: x[0, 0, 0, 0],
}


def numbers(dtype: Any = torch.float32) -> Any:
    return torch.arange(2 * 3 * 4 * 8).reshape(2, 3, 4, 8).to(dtype)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_tensor_and_back(dtype: Any, cut: Any) -> None:
    tensor = cut(numbers(dtype))
    array = borrow("q", tensor)
    assert array.dtype == FLOATS[dtype]
    assert array.shape == tuple(tensor.shape)
    assert np.array_equal(array.astype(np.float64), tensor.double().numpy())
    assert array.flags.writeable
    back = like(array, torch.ones(1))
    assert (type(back), back.dtype, back.shape) == (torch.Tensor, dtype, tensor.shape)
    if array.size:
        assert array.ctypes.data == back.data_ptr() == tensor.data_ptr()
        assert back.stride() == tensor.stride()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64], ids=str)
def test_masks_and_lengths(dtype: Any) -> None:
    tensor = numbers(dtype)
    array = borrow("kv_lengths", tensor)
    assert np.array_equal(array, tensor.numpy())
    assert array.dtype == tensor.numpy().dtype
    assert array.ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_one_writes_the_other_reads(dtype: Any) -> None:
    tensor = numbers(dtype)
    array = borrow("out", tensor)
    array[0, 0, 0, 0] = 5
    assert tensor[0, 0, 0, 0] == 5
    tensor[0, 0, 0, 1] = 7
    assert array[0, 0, 0, 1] == 7
    like(array, tensor)[0, 0, 0, 2] = 9
    assert float(array[0, 0, 0, 2]) == tensor[0, 0, 0, 2].item() == 9


def test_each_keeps_the_other_s_memory() -> None:
    array = borrow("q", numbers().clone())
    gc.collect()
    assert np.array_equal(array, numbers().numpy())
    made = np.arange(6, dtype=np.float32)
    alive = weakref.ref(made)
    tensor = like(made, torch.ones(1))[2:]
    del made
    gc.collect()
    assert tensor.tolist() == [2, 3, 4, 5]
    del tensor
    gc.collect()
    assert alive() is None


def test_a_parameter_is_lent_detached() -> None:
    tensor = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"^q must not require grad, .*pass q.detach\(\)"):
        borrow("q", tensor)
    assert borrow("q", tensor.detach()).ctypes.data == tensor.data_ptr()
    assert type(like(np.ones(3), torch.nn.Parameter(tensor))) is torch.Tensor


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.eye(3).to_sparse(), ValueError, r"^q must be .* got Tensor \(.*layout.*\); pass a NumPy array"),
        (torch.empty(3, device="meta"), ValueError, r"^q must be .* got Tensor \(.*meta.*\)"),
        (torch.ones(3, dtype=torch.complex64).conj(), ValueError, r"^q must be .* got Tensor \(.*conjugate.*\)"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, ValueError, r"^q must hold .*pass q.resolve_neg\(\)"),
        (torch.ones(3, dtype=torch.float8_e4m3fn), TypeError, "^q must have a dtype .*code 10 with 8 bits"),
    ],
    ids=["sparse", "meta", "conjugate", "negative", "float8"],
)
def test_tensors_that_cannot_be_lent(tensor: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        borrow("q", tensor)


def test_attention_between_tensors() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 33, 4, 24).transpose(1, 2) for _ in range(3))
    out = maskattn.attention(borrow("q", q), borrow("k", k), borrow("v", v), mask=Causal())
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(like(out, q), want, rtol=0, atol=4e-6)
