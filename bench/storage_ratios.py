"""What memory holds: dtypes of arrays and storages of a KV cache, against PyTorch's SDPA on tensors of the same dtype.

    pip install ".[parity]" && python -m bench.storage_ratios --markdown

How it is timed: side_by_side.py. PyTorch has no cache of its own here: it reads contiguous tensors, of int8's case the
faster of float32 and bfloat16 ones that were dequantised beforehand.
"""

from __future__ import annotations

import zlib
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

try:
    from bench import side_by_side as timing  # PyTorch first
except ModuleNotFoundError:
    raise SystemExit(
        'storage_ratios.py compares with PyTorch, which is not installed: pip install ".[parity]"'
    ) from None

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

import maskattn
from bench.side_by_side import Cases, Prepared
from maskattn import KVCache
from maskattn.masks import Causal

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "pages of 16": {"page_size": 16},
    "pages of 64": {"page_size": 64},
    "ring": {"window": 8192},
}
TOLERANCE = {"float32": 4e-6, "float16": 2e-3, "bfloat16": 2e-2, "int8": 5e-2}


def draw(name: str, *shape: int) -> Any:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)


def tensor(array: Any, dtype: str) -> Any:
    return torch.from_numpy(array.astype(np.float32)).to(getattr(torch, dtype))


def arrays(dtype: str, q_heads: int, kv_heads: int, q_len: int, kv_len: int, head_dim: int) -> Prepared:
    """Attention over arrays; causal where there are several rows."""
    numbers = [draw("q", 1, q_heads, q_len, head_dim), *(draw(n, 1, kv_heads, kv_len, head_dim) for n in "kv")]
    q, k, v = (x.astype(DTYPES[dtype]) for x in numbers)
    mask = Causal().plan(q_len, kv_len) if q_len > 1 else None
    theirs = [tensor(x, dtype) for x in (q, k, v)]
    options = {"is_causal": q_len > 1, "enable_gqa": q_heads != kv_heads}
    nbytes = k.nbytes + v.nbytes
    pairs = q_heads * (q_len * (q_len + 1) / 2 if q_len > 1 else kv_len)
    work = (4 * pairs * head_dim / 1e9, "GFLOP/s") if q_len > 1 else (nbytes / 1e9, "GB/s")
    out = np.empty_like(q)
    return Prepared(
        partial(maskattn.attention, q, k, v, mask=mask, out=out), {"SDPA": lambda: sdpa(*theirs, **options)}, *work
    )


def cached(storage: str, dtype: str, kv_len: int) -> Prepared:
    """One query against a cache of 8 heads x 64."""
    q, k, v = draw("q", 1, 8, 1, 64), draw("k", 1, 8, kv_len, 64), draw("v", 1, 8, kv_len, 64)
    kind = np.int8 if dtype == "int8" else DTYPES[dtype]
    cache = KVCache(1, 1, 8, kv_len, 64, dtype=kind, **STORAGES[storage])
    cache[0].append(k, v)
    theirs = {
        f"SDPA, {name}": partial(sdpa, *(tensor(x, name) for x in (q, k, v)))
        for name in (("float32", "bfloat16") if dtype == "int8" else (dtype,))
    }
    out = np.empty_like(q)
    nbytes = 2 * kv_len * 8 * (64 * np.dtype(kind).itemsize + (4 if dtype == "int8" else 0))
    return Prepared(partial(maskattn.attention, q, cache[0], out=out), theirs, nbytes / 1e9, "GB/s")


def cases(prefill: int = 2048, decode: int = 8192) -> Cases:
    found: Cases = {}
    for dtype in DTYPES:
        found[f"{dtype}, causal {prefill}, 8 x 64"] = partial(arrays, dtype, 8, 8, prefill, prefill, 64)
        found[f"{dtype}, decode {decode} keys, 8 x 64"] = partial(arrays, dtype, 8, 8, 1, decode, 64)
        found[f"{dtype}, decode {decode} keys, 32/8 x 128"] = partial(arrays, dtype, 32, 8, 1, decode, 128)
    for storage in STORAGES:
        for dtype in (*DTYPES, "int8"):
            found[f"cache, {storage}, {dtype}, decode {decode} keys"] = partial(cached, storage, dtype, decode)
    return found


def check(case: str, prepared: Prepared) -> None:
    tolerance = next(TOLERANCE[name] for name in ("int8", "bfloat16", "float16", "float32") if name in case)
    ours = prepared.ours().astype(np.float64)
    for name, way in prepared.theirs.items():
        allowed = max(tolerance, TOLERANCE["bfloat16"] if "bfloat16" in name else 0)
        if np.abs(ours - way().double().numpy()).max() > allowed:
            raise SystemExit(f"{case}: maskattn and PyTorch ({name}) differ by more than {allowed}")


if __name__ == "__main__":
    timing.main(__doc__ or "", cases(), check)
