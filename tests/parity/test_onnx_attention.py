"""attention() and attention_weights() against ONNX's Attention (standard domain, opset 23 to 25).

By two implementations: onnxruntime's on the CPU, and the reference evaluator of the package onnx, which also has what
onnxruntime 1.31 has not: windows, masks whose last axis is shorter than the keys or that broadcast over rows, float64.
Where the two conventions differ, ``in_our_words`` says how one becomes the other.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import maskattn
from maskattn.masks import Causal, Dense, KeyPadding, Mask, SlidingWindow, to_onnx
from strategies import normal

Array = Any
BATCH, HEADS, DIM = 2, 4, 8
OPSETS = (23, 24, 25)
# Older ones follow an older standard; see in_our_words.
VERSIONS = {"onnx": "1.23", "onnxruntime": "1.31"}
INPUTS = ("q", "k", "v", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
STAGES = ("scores", "softcap", "bias", "softmax")  # by qk_matmul_output_mode
LENGTHS = [(6, 6), (4, 9), (9, 4), (1, 7), (40, 300)]


def library(name: str) -> Any:
    """An installed library, or skips; what it warns of while it is imported is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, VERSIONS[name])


class Outputs(NamedTuple):
    y: Array
    present_key: Array
    present_value: Array
    qk: Array


def model_of(feeds: dict[str, Array], opset: int, attributes: dict[str, Any]) -> Any:
    """A model of one node, all four outputs asked for."""
    helper = library("onnx").helper
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    inputs = [name if name in feeds else "" for name in INPUTS]
    while not inputs[-1]:
        inputs.pop()
    outputs = ["y", "present_key", "present_value", "qk"]
    graph = helper.make_graph(
        [helper.make_node("Attention", inputs, outputs, **attributes)],
        "attention",
        [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info(name, kinds["q"], None) for name in outputs],
    )
    # The oldest representation that has these opsets: onnxruntime need not know the newest one.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run_reference(feeds: dict[str, Array], opset: int, attributes: dict[str, Any]) -> list[Array]:
    library("onnx")
    reference = importlib.import_module("onnx.reference")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return reference.ReferenceEvaluator(model_of(feeds, opset, attributes)).run(None, feeds)


def run_onnxruntime(feeds: dict[str, Array], opset: int, attributes: dict[str, Any]) -> list[Array]:
    onnxruntime = library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model_of(feeds, opset, attributes).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


RUNNERS = {"onnxruntime": run_onnxruntime, "reference": run_reference}


@dataclass(frozen=True)
class Operator:
    """Attention by one of the implementations, as a function of arrays and attributes."""

    implementation: str

    def __call__(self, q: Array, k: Array, v: Array, *, opset: int = 25, **given: Any) -> Outputs:
        arrays = {"q": q, "k": k, "v": v} | {n: given.pop(n) for n in INPUTS if given.get(n) is not None}
        feeds = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        attributes = {name: value for name, value in given.items() if value is not None}
        return Outputs(*RUNNERS[self.implementation](feeds, opset, attributes))


@pytest.fixture(params=RUNNERS)
def onnx_attention(request: pytest.FixtureRequest) -> Operator:
    return Operator(request.param)


@pytest.fixture
def reference() -> Operator:
    return Operator("reference")


def in_our_words(
    q: Array,
    k: Array,
    v: Array,
    *,
    attn_mask: Array = None,
    past_key: Array = None,
    past_value: Array = None,
    nonpad_kv_seqlen: Array = None,
    is_causal: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Array, Array, Array, dict[str, Any]]:
    """The arguments of attention(q, k, v, **options) that mean the same.

    - Positions: with a cache, of either kind, the last query stands at the last key, as by our default. Without one,
      ONNX counts from the first key ("top-left"), which is q_offset=0.
    - A past is keys in front of the others. nonpad_kv_seqlen is kv_lengths.
    - A bool mask is a mask, a float mask a bias, whose -inf hides. Keys past the end of either are hidden.
    - Window sizes count the keys besides the query's own, on both sides; -1 is unbounded, our None.
    - The order of scale, softcap, bias, mask and softmax is the same. (Up to onnx 1.20 the same opsets had the bias
      before the cap, and counted from the first key with a cache, too.)
    - A row that sees no key is zeros in both.
    """
    if past_key is not None:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    left, right = (None if size < 0 else size for size in (left_window_size, right_window_size))
    mask: Mask = SlidingWindow(left, right)
    if is_causal:
        mask = mask & Causal()
    bias = None
    if attn_mask is not None:
        beyond = [(0, 0)] * (attn_mask.ndim - 1) + [(0, k.shape[2] - attn_mask.shape[-1])]
        if attn_mask.dtype == np.bool_:
            mask = mask & Dense(np.pad(attn_mask, beyond))
        else:
            bias = np.pad(attn_mask, beyond, constant_values=-np.inf)
    cached = past_key is not None or nonpad_kv_seqlen is not None
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "kv_lengths": nonpad_kv_seqlen}
    return q, k, v, options | {"q_offset": None if cached else 0}


def compare(
    run: Operator, arrays: tuple[Array, Array, Array], opset: int = 25, atol: float = 4e-6, **given: Any
) -> None:
    """All four outputs, the last one at each of its stages."""
    q, k, v, options = in_our_words(*arrays, **given)
    want = maskattn.attention(q, k, v, **options)
    lengths = np.array(k.shape[2] if options["kv_lengths"] is None else options["kv_lengths"])
    for mode, stage in enumerate(STAGES):
        got = run(*arrays, opset=opset, qk_matmul_output_mode=mode, **given)
        assert got.y.dtype == want.dtype
        np.testing.assert_allclose(got.y, want, rtol=0, atol=atol)
        np.testing.assert_array_equal(got.present_key, k)
        np.testing.assert_array_equal(got.present_value, v)
        if mode == 0 and run.implementation == "reference":
            stage = "softcap"  # "raw QK matmul result" says the standard, and so does onnxruntime
        weights = maskattn.attention_weights(q, k, stage=stage, **options)
        # A key that does not exist has no score here. There it has one, of which nothing comes.
        exists = np.broadcast_to(np.arange(k.shape[2]) < lengths.reshape(-1, 1, 1, 1), weights.shape)
        np.testing.assert_allclose(hidden_as_inf(got.qk)[exists], weights[exists], rtol=0, atol=2 * atol)


def hidden_as_inf(scores: Array) -> Array:
    """onnxruntime hides by the least finite number, to which a score adds nothing; the reference by -inf."""
    return np.where(scores < np.finfo(scores.dtype).min / 2, -np.inf, scores)


def qkv(rng: np.random.Generator, q_len: int, kv_len: int, kv_heads: int = HEADS, v_dim: int = DIM) -> Any:
    shapes = (HEADS, q_len, DIM), (kv_heads, kv_len, DIM), (kv_heads, kv_len, v_dim)
    return tuple(normal(rng, BATCH, *shape) for shape in shapes)


def keep_some(rng: np.random.Generator, *shape: int) -> Array:
    """A bool mask with a row that sees nothing, where it has rows."""
    keep = rng.random(shape) < 0.6
    if shape[-2] > 1:
        keep[..., 1, :] = False
    return keep


def additive(keep: Array, dtype: Any = np.float32) -> Array:
    return np.where(keep, 0, -np.inf).astype(dtype)


# Both implementations


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_causal_without_a_cache_is_top_left(
    onnx_attention: Operator, q_len: int, kv_len: int, is_causal: int, opset: int, rng: np.random.Generator
) -> None:
    compare(onnx_attention, qkv(rng, q_len, kv_len), opset, is_causal=is_causal)


def test_top_left_is_not_our_default(onnx_attention: Operator, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 4, 9)
    theirs = onnx_attention(*arrays, is_causal=1).y
    np.testing.assert_allclose(theirs, maskattn.attention(*arrays, mask=Causal(), q_offset=0), rtol=0, atol=4e-6)
    assert np.abs(theirs - maskattn.attention(*arrays, mask=Causal())).max() > 0.1


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize(("q_len", "past_len"), [(1, 8), (4, 5), (6, 0), (3, 300)])
def test_past(
    onnx_attention: Operator, q_len: int, past_len: int, is_causal: int, opset: int, rng: np.random.Generator
) -> None:
    past = {name: normal(rng, BATCH, HEADS, past_len, DIM) for name in ("past_key", "past_value")}
    compare(onnx_attention, qkv(rng, q_len, q_len), opset, is_causal=is_causal, **past)
    mask = keep_some(rng, BATCH, 1, q_len, past_len + q_len)
    compare(onnx_attention, qkv(rng, q_len, q_len), opset, is_causal=is_causal, attn_mask=mask, **past)


@pytest.mark.parametrize("opset", OPSETS[1:])
@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_nonpad_kv_seqlen(
    onnx_attention: Operator, q_len: int, kv_len: int, is_causal: int, opset: int, rng: np.random.Generator
) -> None:
    """With more queries than keys that count, the first queries see nothing."""
    for real in (np.array([1, kv_len]), np.array([kv_len - 1, 2])):
        compare(onnx_attention, qkv(rng, q_len, kv_len), opset, is_causal=is_causal, nonpad_kv_seqlen=real)


@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize("kind", ["bool", "additive", "bias", "bias with hidden keys"])
@pytest.mark.parametrize("lead", [(), (1,), (HEADS,), (BATCH, 1), (1, HEADS), (BATCH, HEADS)], ids=str)
def test_masks(
    onnx_attention: Operator, lead: tuple[int, ...], kind: str, is_causal: int, rng: np.random.Generator
) -> None:
    keep, bias = keep_some(rng, *lead, 5, 9), normal(rng, *lead, 5, 9)
    attn_mask = {"bool": keep, "additive": additive(keep), "bias": bias}.get(kind, bias + additive(keep))
    compare(onnx_attention, qkv(rng, 5, 9), attn_mask=attn_mask, is_causal=is_causal)


@pytest.mark.parametrize("kind", ["bool", "bias"])
def test_rows_that_see_nothing(onnx_attention: Operator, kind: str, rng: np.random.Generator) -> None:
    arrays, keep = qkv(rng, 5, 9), keep_some(rng, 5, 9)
    got = onnx_attention(*arrays, attn_mask=keep if kind == "bool" else additive(keep), qk_matmul_output_mode=3)
    ours = maskattn.attention(*arrays, mask=keep), maskattn.attention_weights(*arrays[:2], mask=keep)
    for output in (got.y, got.qk, *ours):
        assert not output[:, :, 1].any()


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("softcap", [0.5, 3.0])
def test_softcap_comes_before_bias_and_mask(
    onnx_attention: Operator, softcap: float, opset: int, rng: np.random.Generator
) -> None:
    for attn_mask in (None, 2 * normal(rng, 5, 9), keep_some(rng, 5, 9)):
        compare(onnx_attention, qkv(rng, 5, 9), opset, softcap=softcap, attn_mask=attn_mask, is_causal=1)


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_scale(onnx_attention: Operator, scale: float, rng: np.random.Generator) -> None:
    compare(onnx_attention, qkv(rng, 5, 9), scale=scale)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fewer_key_heads(onnx_attention: Operator, kv_heads: int, rng: np.random.Generator) -> None:
    past = {name: normal(rng, BATCH, kv_heads, 3, DIM) for name in ("past_key", "past_value")}
    compare(onnx_attention, qkv(rng, 5, 9, kv_heads=kv_heads), is_causal=1)
    compare(onnx_attention, qkv(rng, 5, 5, kv_heads=kv_heads), is_causal=1, **past)


def test_values_of_another_dimension(onnx_attention: Operator, rng: np.random.Generator) -> None:
    compare(onnx_attention, qkv(rng, 5, 9, v_dim=20), is_causal=1)


def test_heads_side_by_side(onnx_attention: Operator, rng: np.random.Generator) -> None:
    """(batch, len, heads * dim) with q_num_heads and kv_num_heads: transposed views, and no copy, here."""
    q, k, v = normal(rng, BATCH, 5, HEADS * DIM), normal(rng, BATCH, 9, 2 * DIM), normal(rng, BATCH, 9, 2 * DIM)
    got = onnx_attention(q, k, v, q_num_heads=HEADS, kv_num_heads=2, is_causal=1).y
    heads = (x.reshape(BATCH, x.shape[1], -1, DIM).swapaxes(1, 2) for x in (q, k, v))
    want = maskattn.attention(*heads, mask=Causal(), q_offset=0)
    np.testing.assert_allclose(got, want.swapaxes(1, 2).reshape(BATCH, 5, -1), rtol=0, atol=4e-6)


def test_half(onnx_attention: Operator, rng: np.random.Generator) -> None:
    """Rounded between the operator's steps there, and once here."""
    compare_dtype(onnx_attention, np.float16, 4e-3, rng)


def compare_dtype(run: Operator, dtype: Any, atol: float, rng: np.random.Generator) -> None:
    arrays = tuple(x.astype(dtype) for x in qkv(rng, 5, 9))
    bias = normal(rng, BATCH, 1, 5, 9).astype(dtype)
    compare(run, arrays, atol=atol)
    compare(run, arrays, atol=atol, attn_mask=bias, is_causal=1)
    compare(run, arrays, atol=atol, attn_mask=keep_some(rng, 5, 9), softcap=2.0)


@pytest.mark.parametrize("dtype", [np.bool_, np.float32])
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_under_our_masks_exported(
    onnx_attention: Operator, q_len: int, kv_len: int, dtype: Any, rng: np.random.Generator
) -> None:
    arrays = qkv(rng, q_len, kv_len)
    mask = (Causal() & SlidingWindow(left=3)) | KeyPadding(rng.random((BATCH, kv_len)) < 0.2)
    got = onnx_attention(*arrays, attn_mask=to_onnx(mask, q_len, kv_len, dtype)).y
    np.testing.assert_allclose(got, maskattn.attention(*arrays, mask=mask), rtol=0, atol=4e-6)


@pytest.mark.parametrize("seed", range(40))
def test_combinations(onnx_attention: Operator, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q_len, past_len, cache = rng.integers(1, 40), int(rng.integers(1, 60)), rng.choice(["none", "past", "nonpad"])
    kv_heads = int(rng.choice([1, 2, 4]))
    kv_len = q_len if cache == "past" else rng.integers(2, 300)
    total = kv_len + (past_len if cache == "past" else 0)
    shape = [(q_len, total), (HEADS, q_len, total), (BATCH, 1, q_len, total)][rng.integers(3)]
    given: dict[str, Any] = {"is_causal": int(rng.integers(2))}
    if cache == "past":
        given |= {name: normal(rng, BATCH, kv_heads, past_len, DIM) for name in ("past_key", "past_value")}
    if cache == "nonpad":
        given["nonpad_kv_seqlen"] = rng.integers(1, kv_len + 1, BATCH)
    kind = rng.integers(4)
    if kind:
        keep = keep_some(rng, *shape)
        given["attn_mask"] = [keep, normal(rng, *shape), normal(rng, *shape) + additive(keep)][kind - 1]
    if rng.random() < 0.5:
        given["softcap"] = float(rng.uniform(0.5, 5))
    if rng.random() < 0.5:
        given["scale"] = float(rng.uniform(0.1, 1))
    compare(onnx_attention, qkv(rng, q_len, kv_len, kv_heads=kv_heads), **given)


# The reference alone


def test_double(reference: Operator, rng: np.random.Generator) -> None:
    compare_dtype(reference, np.float64, 1e-12, rng)


@pytest.mark.parametrize("kind", ["bool", "bias"])
@pytest.mark.parametrize("shape", [(9,), (1, 9), (BATCH, 1, 1, 9), (7,), (BATCH, 1, 1, 1)], ids=str)
def test_masks_that_broadcast_over_rows(
    reference: Operator, shape: tuple[int, ...], kind: str, rng: np.random.Generator
) -> None:
    """Without is_causal: with it, the reference takes the number of queries from such a mask."""
    attn_mask = normal(rng, *shape) if kind == "bias" else rng.random(shape) < 0.6
    compare(reference, qkv(rng, 5, 9), attn_mask=attn_mask)


@pytest.mark.parametrize("kind", ["bool", "bias"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 1), (BATCH, HEADS, 5, 4)], ids=str)
def test_masks_that_end_early(reference: Operator, shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> None:
    """A last axis of 1 is the first key alone: it does not broadcast, as ours does."""
    attn_mask = normal(rng, *shape) if kind == "bias" else rng.random(shape) < 0.6
    compare(reference, qkv(rng, 5, 9), attn_mask=attn_mask)
    compare(reference, qkv(rng, 5, 9), attn_mask=attn_mask, is_causal=1)


def test_nonpad_kv_seqlen_with_a_mask_that_ends_early(reference: Operator, rng: np.random.Generator) -> None:
    attn_mask = normal(rng, 5, 7)
    compare(reference, qkv(rng, 5, 9), attn_mask=attn_mask, nonpad_kv_seqlen=np.array([7, 2]), is_causal=1)


@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize("window", [(-1, 0), (2, 1), (0, 0), (3, -1), (300, 300)], ids=str)
@pytest.mark.parametrize("cache", ["none", "past", "nonpad"])
def test_windows(
    reference: Operator, cache: str, window: tuple[int, int], is_causal: int, rng: np.random.Generator
) -> None:
    given: dict[str, Any] = {"is_causal": is_causal, "left_window_size": window[0], "right_window_size": window[1]}
    arrays = qkv(rng, 5, 5 if cache == "past" else 9)
    if cache == "past":
        given |= {name: normal(rng, BATCH, HEADS, 4, DIM) for name in ("past_key", "past_value")}
    if cache == "nonpad":
        given["nonpad_kv_seqlen"] = np.array([7, 2])
    compare(reference, arrays, **given)
    compare(reference, arrays, attn_mask=keep_some(rng, 5, 9), **given)
