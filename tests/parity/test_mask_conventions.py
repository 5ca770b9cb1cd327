"""The importers and exporters mean what the libraries mean: their attention under their masks, and ours under the
imported ones, and theirs under the exported ones, are the same.

The extra ``conventions`` installs the libraries; where one is missing its tests skip, in CI none does.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskattn
from maskattn.masks import Causal, Chunked, Dense, KeyPadding, Mask, Padding, SlidingWindow
from maskattn.masks import conventions as c
from strategies import expressions, geometries, normal, seeds

Array = Any
BATCH, HEADS, DIM = 2, 4, 8
LENGTHS = [(6, 6), (4, 9), (9, 4), (1, 7)]


def library(name: str) -> Any:
    """An installed library, or skips; what it warns of while it is imported is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            pytest.skip(f"needs {name}")


@pytest.fixture
def torch() -> Any:
    return library("torch")


@pytest.fixture
def jax() -> Any:
    return library("jax")


@pytest.fixture
def onnx_attention() -> Any:
    """ONNX's reference implementation of Attention, as a function of NumPy arrays."""
    onnx = library("onnx")
    reference = library("onnx.reference")
    if onnx.defs.get_schema("Attention", onnx.defs.onnx_opset_version(), "").since_version < 25:
        pytest.skip("needs onnx 1.23, which knows the Attention of opset 25")

    def run(q: Array, k: Array, v: Array, *, attn_mask: Array = None, nonpad: Array = None, **attributes: Any) -> Array:
        given = {"q": q, "k": k, "v": v, "attn_mask": attn_mask, "nonpad": nonpad}
        feeds = {name: value for name, value in given.items() if value is not None}
        inputs = [
            "q",
            "k",
            "v",
            "attn_mask" if "attn_mask" in feeds else "",
            "",
            "",
            "nonpad" if "nonpad" in feeds else "",
        ]
        helper = onnx.helper
        node = helper.make_node("Attention", inputs, ["y"], **attributes)
        values = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in feeds.items()
        ]
        output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, q.shape)
        model = helper.make_model(
            helper.make_graph([node], "attention", values, [output]), opset_imports=[helper.make_opsetid("", 25)]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reference.ReferenceEvaluator(model).run(None, feeds)[0]

    return run


@pytest.fixture
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return library("keras")


def qkv(rng: np.random.Generator, q_len: int, kv_len: int, batch: int = BATCH, heads: int = HEADS) -> Any:
    return tuple(normal(rng, batch, heads, n, DIM) for n in (q_len, kv_len, kv_len))


def agree(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)


# torch.nn.functional.scaled_dot_product_attention


def sdpa(torch: Any, q: Array, k: Array, v: Array, attn_mask: Array = None, **options: Any) -> Array:
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    mask = None if attn_mask is None else torch.from_numpy(attn_mask)
    return torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, **options).numpy()


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_torch_sdpa_is_causal(torch: Any, q_len: int, kv_len: int, rng: np.random.Generator) -> None:
    arrays = qkv(rng, q_len, kv_len)
    mask = c.from_torch_sdpa(None, True, q_len=q_len, kv_len=kv_len)
    agree(maskattn.attention(*arrays, mask=mask), sdpa(torch, *arrays, is_causal=True))


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize("lead", [(), (BATCH, 1), (1, HEADS), (BATCH, HEADS)])
def test_torch_sdpa_masks(torch: Any, q_len: int, kv_len: int, lead: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = qkv(rng, q_len, kv_len)
    keep = rng.random((*lead, q_len, kv_len)) < 0.5
    for attn_mask in (keep, np.where(keep, 0, -np.inf).astype(np.float32)):
        got = maskattn.attention(*arrays, mask=c.from_torch_sdpa(attn_mask))
        agree(got, sdpa(torch, *arrays, attn_mask))
        agree(maskattn.attention(*arrays, mask=c.from_torch_sdpa(torch.from_numpy(attn_mask))), got)


def test_torch_sdpa_takes_both(torch: Any, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 4, 9)
    keep = rng.random((4, 9)) < 0.7
    want = sdpa(torch, *arrays, keep, is_causal=True)
    agree(maskattn.attention(*arrays, mask=c.from_torch_sdpa(keep, True, q_len=4, kv_len=9)), want)


def test_torch_sdpa_finfo_min_differs_only_in_empty_rows(torch: Any, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 6, 6)
    keep = np.tri(6, k=-1, dtype=np.bool_)  # row 0 sees nothing
    low = np.where(keep, 0, np.finfo(np.float32).min).astype(np.float32)
    with pytest.warns(UserWarning, match="Such rows in attn_mask: 1"):
        mask = c.from_torch_sdpa(low)
    got, want = maskattn.attention(*arrays, mask=mask), sdpa(torch, *arrays, low)
    agree(got[:, :, 1:], want[:, :, 1:])
    assert not got[:, :, 0].any()
    agree(want[:, :, 0], arrays[2].mean(axis=2))


@given(geometries(batch=BATCH, heads=HEADS).flatmap(lambda g: st.tuples(st.just(g), expressions(g), seeds)))
def test_torch_sdpa_under_exported_masks(problem: tuple[Any, Mask, int]) -> None:
    torch = library("torch")
    g, mask, seed = problem
    if g.kv_len == 0 or g.q_len == 0:
        return
    arrays = qkv(np.random.default_rng(seed), g.q_len, g.kv_len)
    where = {"q_offset": g.q_offset, "kv_lengths": g.kv_lengths}
    exported = c.to_torch_sdpa(mask, g.q_len, g.kv_len, batch=BATCH, heads=HEADS, **where)
    agree(sdpa(torch, *arrays, exported), maskattn.attention(*arrays, mask=mask, **where))


# torch.nn.MultiheadAttention


def mha(torch: Any, q: Array, k: Array, v: Array, attn_mask: Array = None, key_padding_mask: Array = None) -> Array:
    """The module with identities for weights, on (batch, heads, length, dim)."""
    module = torch.nn.MultiheadAttention(HEADS * DIM, HEADS, bias=False, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(HEADS * DIM).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(HEADS * DIM))
    packed = [torch.from_numpy(x.swapaxes(1, 2).reshape(BATCH, -1, HEADS * DIM)) for x in (q, k, v)]
    masks = [None if x is None else torch.from_numpy(np.array(x)) for x in (attn_mask, key_padding_mask)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of masks of two types
        out, _ = module(*packed, attn_mask=masks[0], key_padding_mask=masks[1])
    return out.detach().numpy().reshape(BATCH, -1, HEADS, DIM).swapaxes(1, 2)


def additive(ignore: Array) -> Array:
    return np.where(ignore, -np.inf, 0).astype(np.float32)


@pytest.mark.parametrize("floats", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("given_masks", ["attn", "padding", "both"])
@pytest.mark.parametrize("lead", [(), (BATCH * HEADS,)])
def test_torch_mha_masks(
    torch: Any, floats: tuple[bool, bool], given_masks: str, lead: tuple[int, ...], rng: np.random.Generator
) -> None:
    arrays = qkv(rng, 5, 7)
    ignore = rng.random((*lead, 5, 7)) < 0.4
    ignore[..., 0] = False  # no empty rows: those are NaN
    padding = np.arange(7) >= np.array([[4], [7]])
    attn_mask = (additive(ignore) if floats[0] else ignore) if given_masks != "padding" else None
    key_padding_mask = (additive(padding) if floats[1] else padding) if given_masks != "attn" else None
    mask = c.from_torch_mha(attn_mask, key_padding_mask, num_heads=HEADS)
    agree(maskattn.attention(*arrays, mask=mask), mha(torch, *arrays, attn_mask, key_padding_mask))


def test_torch_mha_empty_rows_are_nan(torch: Any, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 5, 5)
    ignore = np.zeros((5, 5), np.bool_)
    ignore[2] = True
    want = mha(torch, *arrays, ignore)
    assert np.isnan(want[:, :, 2]).all()
    assert not maskattn.attention(*arrays, mask=c.from_torch_mha(ignore))[:, :, 2].any()


@pytest.mark.parametrize(
    "mask",
    [
        Causal(),
        Causal() & Padding([3, 7]),
        SlidingWindow(2, 1),
        Causal() | Dense(np.arange(BATCH * HEADS * 7).reshape(BATCH, HEADS, 1, 7) % 3 == 0),
    ],
    ids=["causal", "padded", "window", "by-head"],
)
def test_torch_mha_under_exported_masks(torch: Any, mask: Mask, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 7, 7)
    exported = c.to_torch_mha(mask, 7, 7, num_heads=HEADS)
    agree(mha(torch, *arrays, exported), maskattn.attention(*arrays, mask=mask))


def test_torch_mha_is_causal_is_a_promise(torch: Any) -> None:
    """Given falsely, it changes the result in one path and not in another."""
    module, x = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 4, 8)

    def change(need_weights: bool) -> float:
        plain, promised = (
            module(x, x, x, attn_mask=torch.zeros(4, 4), is_causal=given, need_weights=need_weights)[0]
            for given in (False, True)
        )
        return float((plain - promised).detach().abs().max())

    assert change(need_weights=True) == 0
    assert change(need_weights=False) > 0


def test_torch_square_subsequent_mask(torch: Any, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 6, 6)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6)
    agree(maskattn.attention(*arrays, mask=c.from_torch_mha(causal)), maskattn.attention(*arrays, mask=Causal()))


# transformers: its own mask builders


PADDING = {
    "none": None,
    "right": np.array([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]),
    "left": np.array([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]),
}


@pytest.fixture
def masking(torch: Any) -> Any:
    return library("transformers.masking_utils")


def built(torch: Any, masking: Any, implementation: str, builder: str, padding: Array, **config: Any) -> Array:
    """The 4-D mask that transformers builds for one forward pass of 7 tokens."""
    config_class = library("transformers").LlamaConfig
    settings = config_class(
        attn_implementation=implementation, hidden_size=HEADS * DIM, num_attention_heads=HEADS, **config
    )
    mask = getattr(masking, builder)(
        config=settings,
        inputs_embeds=torch.zeros(BATCH, 7, HEADS * DIM),
        attention_mask=None if padding is None else torch.from_numpy(padding),
        past_key_values=None,
        **({"allow_is_causal_skip": False} if "causal" in builder else {}),
    )
    return None if mask is None else mask.numpy()


@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("builder", "options", "config"),
    [
        ("create_causal_mask", {"layer_type": "full_attention"}, {}),
        (
            "create_sliding_window_causal_mask",
            {"layer_type": "sliding_attention", "sliding_window": 3},
            {"sliding_window": 3},
        ),
        (
            "create_bidirectional_sliding_window_mask",
            {"layer_type": "sliding_attention", "sliding_window": 2, "is_causal": False},
            {"sliding_window": 2},
        ),
    ],
    ids=["causal", "window", "both-sides"],
)
def test_hf_builders(
    torch: Any, masking: Any, padding: Array, implementation: str, builder: str, options: Any, config: Any,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    theirs = built(torch, masking, implementation, builder, padding, **config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # finfo.min
        imported = c.from_hf(theirs)
    from_parts = c.from_hf(padding, **options)
    np.testing.assert_array_equal(
        np.broadcast_to(from_parts.to_bool(7, 7), (BATCH, 1, 7, 7)), imported.to_bool(7, 7, batch=BATCH)
    )
    arrays = qkv(rng, 7, 7)
    got, want = maskattn.attention(*arrays, mask=imported), sdpa(torch, *arrays, theirs)
    real = imported.to_bool(7, 7, batch=BATCH).any(axis=-1)[..., None]  # finfo.min shows all keys to the others
    agree(np.where(real, got, 0), np.where(real, want, 0))


@pytest.mark.parametrize("attention_mask", PADDING.values(), ids=PADDING)
def test_hf_sdpa_mask_while_decoding(torch: Any, masking: Any, attention_mask: Array) -> None:
    """A step of 2 tokens after 5, and the keys of a StaticCache of 10, of which the mask knows 7."""
    for kv_len in (7, 10):
        theirs = masking.sdpa_mask(
            batch_size=BATCH,
            q_length=2,
            kv_length=kv_len,
            q_offset=5,
            attention_mask=None if attention_mask is None else torch.from_numpy(attention_mask).bool(),
            allow_is_causal_skip=False,
        ).numpy()
        ours = c.from_hf(attention_mask, kv_len=kv_len, layer_type="full_attention")
        got = ours.to_bool(2, kv_len, batch=BATCH, q_offset=5)
        np.testing.assert_array_equal(got, theirs)


def test_hf_chunks_are_ours_without_left_padding(masking: Any, torch: Any) -> None:
    """With it, transformers counts chunks from each sequence's first real token."""
    theirs = masking.sdpa_mask(
        batch_size=1,
        q_length=7,
        kv_length=7,
        mask_function=masking.chunked_causal_mask_function(3, torch.zeros(1, dtype=torch.long)),
        allow_is_causal_skip=False,
    )
    np.testing.assert_array_equal((Causal() & Chunked(3)).to_bool(7, 7), theirs.numpy())


@pytest.mark.parametrize("padding", [PADDING["right"], PADDING["left"]], ids=["right", "left"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hf_model_under_exported_masks(torch: Any, padding: Array, implementation: str) -> None:
    """A model gives the same with its own mask and with ours; where it is built with -inf, rows that see nothing are
    NaN in eager attention, so those are left out."""
    transformers = library("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, attn_implementation=implementation, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaModel(config).eval()
    tokens = torch.arange(14).reshape(2, 7) % 11
    mask = c.from_hf(padding, layer_type="full_attention")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)
        exported = c.to_hf(mask, 7, 7, np.bool_ if implementation == "sdpa" else np.float32)
        want = model(tokens, attention_mask=torch.from_numpy(padding)).last_hidden_state.numpy()
        got = model(tokens, attention_mask=torch.from_numpy(exported)).last_hidden_state.numpy()
    real = padding.astype(np.bool_)
    agree(got[real], want[real])


# JAX


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"local_window_size": (2, 1)},
        {"local_window_size": 1, "is_causal": True},
        {"is_causal": True, "key_value_seq_lengths": np.array([3, 4], np.int32)},
        {"key_value_seq_lengths": np.array([3, 4], np.int32), "query_seq_lengths": np.array([1, 1], np.int32)},
    ],
    ids=["causal", "window", "causal-window", "causal-lengths", "lengths"],
)
def test_jax(jax: Any, q_len: int, kv_len: int, options: dict[str, Any], rng: np.random.Generator) -> None:
    arrays = qkv(rng, q_len, kv_len)
    keep = rng.random((BATCH, 1, q_len, kv_len)) < 0.8
    for array in (None, keep):
        mask = c.from_jax(array, q_len=q_len, kv_len=kv_len, **options)
        theirs = jax.nn.dot_product_attention(
            *(x.swapaxes(1, 2) for x in arrays), mask=None if array is None else jax.numpy.asarray(array), **options
        )
        got, want = maskattn.attention(*arrays, mask=mask), np.asarray(theirs).swapaxes(1, 2)
        seen = mask.to_bool(q_len, kv_len, batch=BATCH).any(axis=-1)[..., None]  # the others are means in JAX
        agree(np.where(seen, got, 0), np.where(seen, want, 0))


def test_jax_empty_rows_are_the_mean(jax: Any, rng: np.random.Generator) -> None:
    q, k, v = qkv(rng, 3, 4)
    keep = np.arange(3)[:, None] != np.full(4, 1)
    theirs = jax.nn.dot_product_attention(
        *(x.swapaxes(1, 2) for x in (q, k, v)), mask=jax.numpy.asarray(keep[None, None])
    )
    agree(np.asarray(theirs)[:, 1], v.mean(axis=2))
    assert not maskattn.attention(q, k, v, mask=c.from_jax(keep))[:, :, 1].any()


def test_splash_windows_count_besides_the_query(jax: Any) -> None:
    splash = library("jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask")
    local = splash.LocalMask((6, 6), (2, 1), 0)[:, :]
    np.testing.assert_array_equal(SlidingWindow(2, 1).to_bool(6, 6)[0, 0], local)
    np.testing.assert_array_equal(Causal().to_bool(4, 6)[0, 0], splash.CausalMask((4, 6), 2)[:, :])


# ONNX: the reference implementation


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": 1},
        {"left_window_size": 2, "right_window_size": 1},
        {"left_window_size": 1, "is_causal": 1},
        {"right_window_size": 0},
    ],
    ids=["none", "causal", "window", "causal-window", "right"],
)
@pytest.mark.parametrize("width", ["full", "short", "one"])
def test_onnx(
    onnx_attention: Any, q_len: int, kv_len: int, options: dict[str, int], width: str, rng: np.random.Generator
) -> None:
    arrays = qkv(rng, q_len, kv_len)
    keep = rng.random((BATCH, 1, q_len, {"full": kv_len, "short": kv_len - 2, "one": 1}[width])) < 0.7
    for attn_mask in (None, keep, additive(~keep)):
        mask = c.from_onnx(attn_mask, q_len=q_len, kv_len=kv_len, **options)
        agree(maskattn.attention(*arrays, mask=mask), onnx_attention(*arrays, attn_mask=attn_mask, **options))


@pytest.mark.parametrize("options", [{}, {"is_causal": 1}, {"left_window_size": 1, "right_window_size": 1}])
def test_onnx_nonpad(onnx_attention: Any, options: dict[str, int], rng: np.random.Generator) -> None:
    arrays, real = qkv(rng, 3, 8), np.array([2, 7])
    mask = c.from_onnx(q_len=3, kv_len=8, nonpad_kv_seqlen=real, **options)
    agree(maskattn.attention(*arrays, mask=mask), onnx_attention(*arrays, nonpad=real, **options))


@pytest.mark.parametrize("dtype", [np.bool_, np.float32])
def test_onnx_under_exported_masks(onnx_attention: Any, dtype: Any, rng: np.random.Generator) -> None:
    arrays = qkv(rng, 4, 9)
    mask = (Causal() & SlidingWindow(left=3)) & ~KeyPadding(np.arange(9) == 5)
    exported = c.to_onnx(mask, 4, 9, dtype)
    agree(onnx_attention(*arrays, attn_mask=exported), maskattn.attention(*arrays, mask=mask))


# flash-attn: as documented


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (2, 1), (0, 0), (-1, 1), (3, -1), (20, 20)])
def test_flash_attn_is_its_documented_formula(q_len: int, kv_len: int, causal: bool, window: tuple[int, int]) -> None:
    """flash-attn needs a GPU, so it is not run: what its flash_attn_func documents is checked instead.

    Query i sees the keys from ``i + seqlen_k - seqlen_q - window_size[0]`` to ``i + seqlen_k - seqlen_q +
    window_size[1]``, both among them, -1 without a limit; a causal mask is aligned to the bottom right corner.
    """
    left, right = (np.inf if size == -1 else size for size in window)
    i, key = np.ogrid[:q_len, :kv_len]
    own = i + kv_len - q_len
    want = (own - left <= key) & (key <= own + (min(right, 0) if causal else right))
    got = c.from_flash_attn(causal, window).to_bool(q_len, kv_len)
    np.testing.assert_array_equal(got[0, 0], want)


# Keras: the weights of a layer show what it keeps


def shown(keras: Any, q_len: int, kv_len: int, **masks: Any) -> Array:
    """Bool (batch, heads, q_len, kv_len): where MultiHeadAttention puts weight."""
    layer = keras.layers.MultiHeadAttention(HEADS, DIM)
    rng = np.random.default_rng(0)
    q, k = (normal(rng, BATCH, n, DIM) for n in (q_len, kv_len))
    _, weights = layer(q, k, return_attention_scores=True, **masks)
    return np.asarray(weights) > 0


@pytest.mark.parametrize(("q_len", "kv_len"), [(6, 6), (4, 9), (9, 4)])
def test_keras(keras: Any, q_len: int, kv_len: int, rng: np.random.Generator) -> None:
    keys = np.arange(kv_len) < np.array([[kv_len - 1], [kv_len]])
    keep = rng.random((BATCH, q_len, kv_len)) < 0.6
    keep[..., 0] = True
    where = {"batch": BATCH, "heads": HEADS}
    for masks, mask in (
        ({"key_mask": keys, "value_mask": keys}, c.from_keras(keys)),
        ({"attention_mask": keep}, c.from_keras(keep)),
        ({"use_causal_mask": True}, c.from_keras(None, True, q_len=q_len, kv_len=kv_len)),
        ({"attention_mask": keep, "use_causal_mask": True}, c.from_keras(keep, True, q_len=q_len, kv_len=kv_len)),
        ({"attention_mask": keep.astype(np.float32)}, c.from_keras(keep.astype(np.float32))),
        ({"attention_mask": c.to_keras(Causal(), q_len, kv_len)}, Causal()),
    ):
        want = mask.to_bool(q_len, kv_len, **where)
        got = shown(keras, q_len, kv_len, **masks)
        real = want.any(axis=-1, keepdims=True)
        np.testing.assert_array_equal(got & real, np.broadcast_to(want, got.shape) & real)


def test_keras_inverts_additive_masks(keras: Any) -> None:
    keep = np.tri(5, k=0, dtype=np.bool_)
    got = shown(keras, 5, 5, attention_mask=np.broadcast_to(additive(~keep), (BATCH, 5, 5)))
    np.testing.assert_array_equal(got[:, :, :-1], np.broadcast_to(~keep, got.shape)[:, :, :-1])
    with pytest.raises(ValueError, match="from_additive"):
        c.from_keras(additive(~keep)[None])
