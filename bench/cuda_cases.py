"""What bench.cuda times: masks and shapes, our call and PyTorch's ways to compute the same.

A mask stands here twice, as ours and as FlexAttention's function of positions; every case is compared with float64
before it is timed, so that both must mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import maskattn
from bench.side_by_side import Call, Prepared, Ways
from maskattn.masks import BlockSparse, Causal, Documents, Mask, SlidingWindow

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
LONGEST_MATRIX = 8192  # of a (q_len, kv_len) matrix: ways that need one are left out where it is larger
SAMPLED_ROWS = 32  # of a head, for the comparison with float64

Positions = Callable[[Any, Any, Any, Any], Any]  # (b, h, query, key) -> bool, as FlexAttention wants it


@dataclass(frozen=True)
class Case:
    """Self-attention of ``q_len`` queries that are the last of ``kv_len`` positions."""

    name: str
    q_len: int
    kv_len: int
    mask: Mask | None
    positions: Positions | None = None
    batch: int = 1
    q_heads: int = 16
    kv_heads: int = 16
    head_dim: int = 128
    dtype: str = "bfloat16"
    goal: float = 1.0  # times the best of PyTorch's ways; of decodes, the share of the copy bandwidth

    @property
    def is_decode(self) -> bool:
        return self.q_len == 1

    @property
    def limit(self) -> str:
        return "copy" if self.is_decode else f"{self.dtype} product"

    @property
    def work(self) -> float:
        """Bytes of keys and values of a decode, in GB; the two products' operations of visible pairs, in GFLOP."""
        if self.is_decode:
            element = torch.finfo(getattr(torch, self.dtype)).bits // 8
            return 2e-9 * self.batch * self.kv_heads * self.kv_len * self.head_dim * element
        pairs = self.q_len * self.kv_len if self.mask is None else self.mask.count(self.q_len, self.kv_len)
        return 4e-9 * pairs * self.batch * self.q_heads * self.head_dim


def cases() -> list[Case]:
    causal = Case("causal 8192", 8192, 8192, Causal(), lambda b, h, q, k: k <= q, goal=0.7)
    found = [causal]
    for n in (8192, 32768):
        found += [window(n), documents(n), block_sparse(n)]
    long = Case("decode 32768", 1, 32768, None, q_heads=32, kv_heads=8, goal=0.85)
    found += [
        replace(long, name="decode 8 x 32768, groups of 4", batch=8),
        replace(long, name="decode 64 x 8192, groups of 8", batch=64, kv_len=8192, q_heads=64),
        replace(long, name="decode 8 x 16384, no groups", batch=8, kv_len=16384, kv_heads=32),
        long,
    ]
    return [*found, replace(causal, name="causal 8192, float32", dtype="float32", q_heads=8, goal=4.0)]


def window(n: int, left: int = 1023) -> Case:
    return Case(
        f"window {left + 1} of {n}",
        n,
        n,
        Causal() & SlidingWindow(left),
        lambda b, h, q, k: (k <= q) & (q - k <= left),
        goal=1.5,
    )


def documents(n: int, mean: int = 1024) -> Case:
    """Lengths are uniform between none and twice the mean, and not multiples of a tile."""
    cuts = np.sort(np.random.default_rng(n).choice(n, n // mean - 1, replace=False))
    ids = np.searchsorted(cuts, np.arange(n), side="right")

    def same(b: Any, h: Any, q: Any, k: Any) -> Any:
        at = _on(ids, q)
        return (k <= q) & (at[q] == at[k])

    return Case(f"{n // mean} documents of {n}", n, n, Causal() & Documents(ids), same, goal=1.5)


def block_sparse(n: int, size: int = 128, density: float = 0.1) -> Case:
    blocks = np.random.default_rng(n).random((n // size, n // size)) < density
    blocks |= np.eye(n // size, dtype=bool)
    return Case(
        f"blocks of {size}, {density:.0%} of {n}",
        n,
        n,
        BlockSparse(blocks, size),
        lambda b, h, q, k: _on(blocks, q)[q // size, k // size],
        goal=1.5,
    )


_moved: dict[tuple[int, str], torch.Tensor] = {}


def _on(array: np.ndarray[Any, Any], like: torch.Tensor) -> torch.Tensor:
    """Moved once: a compiled function may not copy from the host."""
    key = (id(array), str(like.device))
    if key not in _moved:
        _moved[key] = torch.from_numpy(array).to(like.device)
    return _moved[key]


def prepare(case: Case, device: str) -> Prepared:
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    shape = (case.batch, case.q_heads, case.q_len, case.head_dim)
    q = torch.randn(shape, device=device).to(dtype)
    k, v = (
        torch.randn(case.batch, case.kv_heads, case.kv_len, case.head_dim, device=device).to(dtype) for _ in range(2)
    )
    unit = "GB/s" if case.is_decode else "GFLOP/s"
    return Prepared(_ours(case, q, k, v), _theirs(case, q, k, v), case.work, unit)


def _ours(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Call:
    mask: Any = case.mask
    if mask is not None and q.is_cuda:  # as a layer of a model would: one plan for all
        mask = maskattn.cuda.plan(mask, case.q_len, case.kv_len, like=q)
    out = torch.empty_like(q)
    return partial(maskattn.attention, q, k, v, mask=mask, precision="highest", out=out)


def _theirs(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Ways:
    options: dict[str, Any] = {"enable_gqa": case.q_heads != case.kv_heads}
    if case.mask == Causal():
        options["is_causal"] = True
    elif case.positions is not None and case.kv_len <= LONGEST_MATRIX:
        at = torch.arange(case.kv_len, device=q.device)
        options["attn_mask"] = case.positions(0, 0, at[:, None], at[None, :])
    found: Ways = {}
    if case.positions is None or case.kv_len <= LONGEST_MATRIX:
        for name, backend in BACKENDS.items():
            if name == "math" and case.kv_len > LONGEST_MATRIX and not case.is_decode:
                continue
            found[f"sdpa {name}"] = partial(_sdpa, backend, q, k, v, options)
    if case.positions is not None and q.is_cuda:
        torch.compiler.reset()  # after eight cases it would compile no more, and run uncompiled
        _on_all(case, q)
        blocks = create_block_mask(case.positions, None, None, case.q_len, case.kv_len, device=q.device)
        compiled = torch.compile(flex_attention, dynamic=False)
        found["flex"] = partial(compiled, q, k, v, block_mask=blocks)
    return {name: way for name, way in found.items() if _works(way)}


def _on_all(case: Case, q: torch.Tensor) -> None:
    """Evaluates the positions once, which moves what they look up."""
    assert case.positions is not None
    zero = torch.zeros(1, dtype=torch.long, device=q.device)
    case.positions(zero, zero, zero, zero)


def _sdpa(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> Any:
    with sdpa_kernel([backend]):
        return scaled_dot_product_attention(q, k, v, **options)


def _works(way: Call) -> bool:
    try:
        way()
    except (RuntimeError, torch.OutOfMemoryError):  # no kernel for this case
        return False
    return True


def check(case: Case, prepared: Prepared) -> dict[str, float]:
    """Every way's largest error in sampled rows of the last head, against float64.

    Raises SystemExit where ours is not attention.
    """
    q, k, v = prepared.ours.args  # type: ignore[attr-defined]
    rows = torch.linspace(0, case.q_len - 1, min(case.q_len, SAMPLED_ROWS)).long()
    kept = [np.ones((1, case.kv_len), bool) if case.mask is None else _row(case, int(i)) for i in rows]
    seen = torch.from_numpy(np.concatenate(kept)).to(q.device)
    scores = q[-1, -1, rows.to(q.device)].double() @ k[-1, -1].double().T * case.head_dim**-0.5
    want = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[-1, -1].double()
    errors = {
        name: float((way()[-1, -1, rows.to(q.device)].double() - want).abs().max())
        for name, way in {"maskattn": prepared.ours, **prepared.theirs}.items()
    }
    allowed = 2e-2 if case.dtype == "bfloat16" else 1e-5
    if not errors["maskattn"] < allowed:
        raise SystemExit(f"{case.name}: the error of maskattn must be below {allowed}, got {errors['maskattn']:.3g}")
    return errors


def _row(case: Case, i: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    assert case.mask is not None
    return case.mask.to_bool(1, case.kv_len, q_offset=case.kv_len - case.q_len + i)[0, 0]
