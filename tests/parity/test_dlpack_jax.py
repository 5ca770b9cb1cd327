"""JAX's arrays come in, and results go out as such. JAX speaks DLPack 0.x, so nothing says that they never change."""

from __future__ import annotations

import numpy as np
import pytest

jnp = pytest.importorskip("jax.numpy")

import maskattn  # noqa: E402 - after the skip
from maskattn.interop import borrow, like  # noqa: E402
from maskattn.masks import Causal  # noqa: E402


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32", "bool"])
def test_an_array_and_back(dtype: str) -> None:
    theirs = jnp.arange(24).reshape(2, 3, 4).astype(dtype)
    array = borrow("q", theirs)
    assert array.dtype == theirs.dtype
    assert np.array_equal(array, np.asarray(theirs))
    assert array.ctypes.data == theirs.unsafe_buffer_pointer()
    assert not array.flags.writeable  # JAX's arrays never change
    back = like(array.copy(), theirs)
    assert type(back) is type(theirs)
    assert back.dtype == theirs.dtype
    assert (back == theirs).all()


def test_attention_between_arrays(rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal((2, 4, 33, 24), dtype=np.float32) for _ in range(3)]
    theirs = [jnp.asarray(x) for x in arrays]
    out = maskattn.attention(*(borrow(name, x) for name, x in zip("qkv", theirs, strict=True)), mask=Causal())
    assert np.array_equal(like(out, theirs[0]), maskattn.attention(*arrays, mask=Causal()))
