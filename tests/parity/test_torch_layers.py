"""Our layers, from the tensors of PyTorch's, give what PyTorch's give: every mask argument, and both norm orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import maskattn  # noqa: E402 - after the skip
from maskattn import DecoderLayer, EncoderLayer, MultiHeadAttention  # noqa: E402
from maskattn.decoder import LayerNorm  # noqa: E402
from maskattn.masks import Causal, Dense, KeyPadding, from_torch_mha  # noqa: E402
from strategies import normal  # noqa: E402

Array = Any
BATCH, WIDTH, HEADS = 3, 32, 4
# Absolute, on numbers of up to 5. Both sum in float32, in different orders; a layer has five products in a row.
ATTENTION, LAYER = 4e-6, 6e-6

pytestmark = [
    # Masks of two dtypes in one call, which it takes all the same; and which of its own paths it takes.
    pytest.mark.filterwarnings("ignore:Support for mismatched"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def randomised(module: Any) -> Any:
    """Biases are zero and norms are one in a new module, which would hide a wrong one."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1 if "norm" in name and "weight" in name else 0, 0.3)
    return module.eval()


def tensor(array: Array) -> Any:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))


def additive(ignore: Array) -> Array:
    return np.where(ignore, -np.inf, 0).astype(np.float32)


def agree(got: Array, want: Any, tolerance: float) -> None:
    """Equal where PyTorch has a number; finite where it has NaN: rows that see no key, or others through them."""
    want = want.detach().numpy()
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    defined = ~np.isnan(want)
    assert defined.any()
    np.testing.assert_allclose(
        got[defined], want[defined], rtol=0, atol=tolerance * max(1, np.abs(want[defined]).max())
    )


# nn.MultiheadAttention


def mha(module: Any, query: Array, key: Array, value: Array, **masks: Any) -> tuple[Any, Any]:
    """Of (batch, len, width) arrays, whatever the module's layout is."""
    arrays = [tensor(a if module.batch_first else a.swapaxes(0, 1)) for a in (query, key, value)]
    options = {name: tensor(mask) if isinstance(mask, np.ndarray) else mask for name, mask in masks.items()}
    with torch.no_grad():
        out, weights = module(*arrays, **options)
    return out if module.batch_first else out.transpose(0, 1), weights


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [1, 7, 130])
def test_mha_self_attention(isa: str, batch_first: bool, bias: bool, length: int, rng: np.random.Generator) -> None:
    theirs = randomised(torch.nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=batch_first))
    ours = MultiHeadAttention.from_torch(theirs.state_dict(), HEADS)
    x = normal(rng, BATCH, length, WIDTH)
    agree(ours(x), mha(theirs, x, x, x, need_weights=False)[0], ATTENTION)
    look_ahead = np.triu(np.ones((length, length), np.bool_), 1)
    want = mha(theirs, x, x, x, attn_mask=look_ahead, is_causal=True, need_weights=False)[0]
    agree(ours(x, mask=Causal()), want, ATTENTION)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (20, None), (None, 12), (20, 12), (20, 20)])
def test_mha_cross_attention(
    batch_first: bool, bias: bool, kdim: int | None, vdim: int | None, rng: np.random.Generator
) -> None:
    theirs = randomised(
        torch.nn.MultiheadAttention(WIDTH, HEADS, bias=bias, kdim=kdim, vdim=vdim, batch_first=batch_first)
    )
    ours = MultiHeadAttention.from_torch(theirs.state_dict(), HEADS)
    query, key, value = (normal(rng, BATCH, n, w) for n, w in ((5, WIDTH), (9, kdim or WIDTH), (9, vdim or WIDTH)))
    padding = np.arange(9) >= np.array([[9], [2], [5]])
    for ignore, mask in ((None, None), (padding, KeyPadding(~padding))):
        want, weights = mha(theirs, query, key, value, key_padding_mask=ignore, average_attn_weights=False)
        agree(ours(query, key, value, mask=mask), want, ATTENTION)
        agree(ours.weights(query, key, mask=mask), weights, ATTENTION)


@pytest.mark.parametrize("key_padding_dtype", [None, bool, float])
@pytest.mark.parametrize("attn_dtype", [None, bool, float])
@pytest.mark.parametrize("lead", [(), (BATCH * HEADS,)], ids=["one", "by-head"])
def test_mha_masks_and_weights(
    lead: tuple[int, ...], attn_dtype: type | None, key_padding_dtype: type | None, rng: np.random.Generator
) -> None:
    theirs = randomised(torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    ours = MultiHeadAttention.from_torch(theirs.state_dict(), HEADS)
    query, key = normal(rng, BATCH, 6, WIDTH), normal(rng, BATCH, 8, WIDTH)
    ignore = rng.random((*lead, 6, 8)) < 0.5
    ignore[..., 2, :] = True  # a row that sees nothing: NaN in PyTorch
    padding = np.arange(8) >= np.array([[8], [3], [5]])
    given = {None: lambda mask: None, bool: lambda mask: mask, float: additive}
    attn_mask, key_padding_mask = given[attn_dtype](ignore), given[key_padding_dtype](padding)
    mask = from_torch_mha(attn_mask, key_padding_mask, num_heads=HEADS)
    masks = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask}
    want, weights = mha(theirs, query, key, key, average_attn_weights=False, **masks)
    agree(ours(query, key, mask=mask), want, ATTENTION)
    by_head = ours.weights(query, key, mask=mask)
    agree(by_head, weights, ATTENTION)
    agree(by_head.mean(axis=1), mha(theirs, query, key, key, **masks)[1], ATTENTION)
    assert bool(torch.isnan(want).any()) == (attn_dtype is not None)


def test_mha_floats_that_are_not_masks_are_biases(rng: np.random.Generator) -> None:
    theirs = randomised(torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    ours = MultiHeadAttention.from_torch(theirs.state_dict(), HEADS)
    x, by_pair, by_key = normal(rng, BATCH, 6, WIDTH), normal(rng, BATCH * HEADS, 6, 6), normal(rng, BATCH, 6)
    want, weights = mha(theirs, x, x, x, attn_mask=by_pair, key_padding_mask=by_key, average_attn_weights=False)
    bias = by_pair.reshape(BATCH, HEADS, 6, 6) + by_key[:, None, None]
    agree(ours(x, bias=bias), want, ATTENTION)
    agree(ours.weights(x, bias=bias), weights, ATTENTION)


# nn.TransformerEncoderLayer and nn.TransformerDecoderLayer


def settings(norm_first: bool, activation: str) -> dict[str, Any]:
    return {"norm_first": norm_first, "activation": activation}


layers = pytest.mark.parametrize("activation", ["relu", "gelu"])
orders = pytest.mark.parametrize("norm_first", [False, True], ids=["post", "pre"])
SHAPES = {"one": (1, 1), "short": (6, 9), "long": (9, 4), "segments": (70, 300)}


def random_masks(rng: np.random.Generator, q_len: int, kv_len: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """What our decoder layer is given, and what PyTorch's is, where 1 = ignore."""
    lengths, memory_lengths = (np.maximum(np.array([1, 0.4, 0.8]) * n, 1).astype(int) for n in (q_len, kv_len))
    look_ahead = np.triu(np.ones((q_len, q_len), np.bool_), 1)
    padding, memory_padding = (
        np.arange(n) >= count[:, None] for n, count in ((q_len, lengths), (kv_len, memory_lengths))
    )
    ignore = rng.random((q_len, kv_len)) < 0.5
    lengths_of = {"kv_lengths": lengths, "memory_lengths": memory_lengths}
    paddings = {"tgt_key_padding_mask": padding, "memory_key_padding_mask": memory_padding}
    return {
        "none": ({"mask": None}, {}),
        "look-ahead": ({}, {"tgt_mask": look_ahead, "tgt_is_causal": True}),
        "padding": (
            {"mask": KeyPadding(~padding), "memory_mask": KeyPadding(~memory_padding)},
            paddings,
        ),
        "look-ahead and padding": (lengths_of, {"tgt_mask": look_ahead, **paddings}),
        "additive": (
            lengths_of,
            {"tgt_mask": additive(look_ahead)} | {name: additive(mask) for name, mask in paddings.items()},
        ),
        "as masks": (
            {"mask": Causal() & KeyPadding(~padding), "memory_mask": KeyPadding(~memory_padding)},
            {"tgt_mask": look_ahead, **paddings},
        ),
        "memory": ({"memory_mask": Dense(~ignore)}, {"tgt_mask": look_ahead, "memory_mask": ignore}),
        "imported": (
            {"mask": from_torch_mha(look_ahead, padding), "memory_mask": from_torch_mha(ignore, memory_padding)},
            {"tgt_mask": look_ahead, "memory_mask": ignore, **paddings},
        ),
    }


@orders
@layers
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoder_layer(shape: str, bias: bool, activation: str, norm_first: bool, rng: np.random.Generator) -> None:
    order = settings(norm_first, activation)
    theirs = randomised(torch.nn.TransformerDecoderLayer(WIDTH, HEADS, 80, bias=bias, batch_first=True, **order))
    ours = DecoderLayer.from_torch(theirs.state_dict(), HEADS, **order)
    q_len, kv_len = SHAPES[shape]
    x, memory = normal(rng, BATCH, q_len, WIDTH), normal(rng, BATCH, kv_len, WIDTH)
    for options, masks in random_masks(rng, q_len, kv_len).values():
        given = {name: tensor(mask) if isinstance(mask, np.ndarray) else mask for name, mask in masks.items()}
        with torch.no_grad():
            want = theirs(tensor(x), tensor(memory), **given)
        agree(ours(x, memory, **options), want, LAYER)


@orders
def test_decoder_layer_with_time_first(isa: str, norm_first: bool, rng: np.random.Generator) -> None:
    theirs = randomised(torch.nn.TransformerDecoderLayer(WIDTH, HEADS, 80, norm_first=norm_first, layer_norm_eps=1e-3))
    ours = DecoderLayer.from_torch(theirs.state_dict(), HEADS, norm_first=norm_first, eps=1e-3)
    x, memory = normal(rng, 6, BATCH, WIDTH), normal(rng, 9, BATCH, WIDTH)
    with torch.no_grad():
        want = theirs(tensor(x), tensor(memory))
    got = ours(x.swapaxes(0, 1), memory.swapaxes(0, 1), mask=None)
    agree(got.swapaxes(0, 1), want, LAYER)


@orders
@layers
@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_encoder_layer(shape: str, path: str, activation: str, norm_first: bool, rng: np.random.Generator) -> None:
    """PyTorch has two implementations: one for inference, and one where gradients are recorded."""
    order = settings(norm_first, activation)
    theirs = randomised(torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 80, batch_first=True, **order))
    ours = EncoderLayer.from_torch(theirs.state_dict(), HEADS, **order)
    length = max(SHAPES[shape])
    x, lengths = normal(rng, BATCH, length, WIDTH), np.maximum(np.array([1, 0.4, 0.8]) * length, 1).astype(int)
    padding, look_ahead = np.arange(length) >= lengths[:, None], np.triu(np.ones((length, length), np.bool_), 1)
    for options, masks in (
        ({}, {}),
        ({"kv_lengths": lengths}, {"src_key_padding_mask": padding}),
        ({"mask": Causal()}, {"src_mask": look_ahead}),
        ({"mask": Causal(), "kv_lengths": lengths}, {"src_mask": look_ahead, "src_key_padding_mask": padding}),
        ({"mask": from_torch_mha(look_ahead.T, padding)}, {"src_mask": look_ahead.T, "src_key_padding_mask": padding}),
    ):
        with torch.set_grad_enabled(path == "plain"):
            want = theirs(tensor(x), **{name: tensor(mask) for name, mask in masks.items()})
        agree(ours(x, **options), want, LAYER)


@orders
@pytest.mark.parametrize("path", ["fast", "plain"])
def test_sequences_of_padding_alone(path: str, norm_first: bool, rng: np.random.Generator) -> None:
    """They get zeros from attention, as in PyTorch's plain path; its fast path of inference makes them NaN."""
    order = settings(norm_first, "relu")
    theirs = randomised(torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 80, batch_first=True, **order))
    ours = EncoderLayer.from_torch(theirs.state_dict(), HEADS, **order)
    x, padding = normal(rng, BATCH, 6, WIDTH), np.zeros((BATCH, 6), np.bool_)
    padding[1] = True
    with torch.set_grad_enabled(path == "plain"):
        want = theirs(tensor(x), src_key_padding_mask=tensor(padding))
    assert bool(torch.isnan(want[1]).all()) == (path == "fast")
    agree(ours(x, mask=KeyPadding(~padding)), want, LAYER)


@orders
def test_memory_of_padding_alone(norm_first: bool, rng: np.random.Generator) -> None:
    order = settings(norm_first, "relu")
    theirs = randomised(torch.nn.TransformerDecoderLayer(WIDTH, HEADS, 80, batch_first=True, **order))
    ours = DecoderLayer.from_torch(theirs.state_dict(), HEADS, **order)
    x, memory, padding = normal(rng, BATCH, 6, WIDTH), normal(rng, BATCH, 9, WIDTH), np.zeros((BATCH, 9), np.bool_)
    padding[1] = True
    with torch.no_grad():
        want = theirs(tensor(x), tensor(memory), memory_key_padding_mask=tensor(padding))
    assert not torch.isnan(want).any()
    agree(ours(x, memory, mask=None, memory_lengths=[9, 0, 9]), want, LAYER)
    agree(ours(x, memory, mask=None, memory_mask=KeyPadding(~padding)), want, LAYER)


# nn.Transformer: stacks of them


@orders
def test_transformer(norm_first: bool, rng: np.random.Generator) -> None:
    theirs = randomised(
        torch.nn.Transformer(WIDTH, HEADS, 3, 3, 80, norm_first=norm_first, activation="gelu", batch_first=True)
    )
    state = theirs.state_dict()
    order = settings(norm_first, "gelu")
    encoder = [EncoderLayer.from_torch(state, HEADS, prefix=f"encoder.layers.{i}.", **order) for i in range(3)]
    decoder = [DecoderLayer.from_torch(state, HEADS, prefix=f"decoder.layers.{i}.", **order) for i in range(3)]
    source, target, lengths = normal(rng, BATCH, 9, WIDTH), normal(rng, BATCH, 6, WIDTH), np.array([9, 3, 5])
    ignore = tensor(np.arange(9) >= lengths[:, None])
    with torch.no_grad():
        want = theirs(
            tensor(source), tensor(target), src_key_padding_mask=ignore, memory_key_padding_mask=ignore,
            tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(6), tgt_is_causal=True,
        )  # fmt: skip
    memory, x = source, target
    for layer in encoder:
        memory = layer(memory, kv_lengths=lengths)
    memory = LayerNorm(*(state[f"encoder.norm.{name}"].numpy() for name in ("weight", "bias")))(memory)
    for layer in decoder:
        x = layer(x, memory, memory_lengths=lengths)
    x = LayerNorm(*(state[f"decoder.norm.{name}"].numpy() for name in ("weight", "bias")))(x)
    agree(x, want, LAYER)


def test_weights_are_those_of_attention_weights(rng: np.random.Generator) -> None:
    """need_weights against the function itself, on the projections of the module's own tensors."""
    theirs = randomised(torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    x = normal(rng, BATCH, 7, WIDTH)
    fused = torch.nn.functional.linear(tensor(x), theirs.in_proj_weight, theirs.in_proj_bias).detach().numpy()
    q, k, _ = fused.reshape(BATCH, 7, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
    look_ahead = np.triu(np.ones((7, 7), np.bool_), 1)
    want = mha(theirs, x, x, x, attn_mask=look_ahead, average_attn_weights=False)[1]
    agree(maskattn.attention_weights(q, k, mask=Causal()), want, ATTENTION)
