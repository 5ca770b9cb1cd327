"""The public layers against their definition in float64, with caches, padding and wrong arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import maskattn
import oracle
from maskattn import DecoderLayer, EncoderLayer, KVCache, MultiHeadAttention
from maskattn.decoder import FeedForward, KeyValues, Linear
from maskattn.masks import Causal, Full, Padding, SlidingWindow
from strategies import normal

Array = Any
WIDTH, INNER, HEADS, BATCH = 24, 40, 4, 3


def attention_state(rng: np.random.Generator, name: str = "", bias: bool = True) -> dict[str, Array]:
    """Random tensors under the names of torch.nn.MultiheadAttention."""
    shapes = {"in_proj_weight": (3 * WIDTH, WIDTH), "out_proj.weight": (WIDTH, WIDTH)}
    if bias:
        shapes |= {"in_proj_bias": (3 * WIDTH,), "out_proj.bias": (WIDTH,)}
    return {f"{name}{key}": normal(rng, *shape) * 0.3 for key, shape in shapes.items()}


def layer_state(rng: np.random.Generator, kind: str = "decoder", bias: bool = True) -> dict[str, Array]:
    """Random tensors under the names of torch.nn.TransformerDecoderLayer or TransformerEncoderLayer."""
    state = attention_state(rng, "self_attn.", bias)
    if kind == "decoder":
        state |= attention_state(rng, "multihead_attn.", bias)
    state |= {"linear1.weight": normal(rng, INNER, WIDTH) * 0.3, "linear2.weight": normal(rng, WIDTH, INNER) * 0.3}
    state |= {f"norm{i}.weight": 1 + 0.3 * normal(rng, WIDTH) for i in range(1, 4 if kind == "decoder" else 3)}
    if bias:
        state |= {"linear1.bias": normal(rng, INNER), "linear2.bias": normal(rng, WIDTH)}
        state |= {f"norm{i}.bias": normal(rng, WIDTH) for i in range(1, 4 if kind == "decoder" else 3)}
    return {name: np.asarray(value, np.float32) for name, value in state.items()}


class Definition:
    """The layers in float64, straight from arXiv:1706.03762 and the tensors' names."""

    def __init__(self, state: dict[str, Array], norm_first: bool, activation: str, eps: float = 1e-5) -> None:
        self.state = {name: tensor.astype(np.float64) for name, tensor in state.items()}
        self.norm_first, self.eps = norm_first, eps
        self.activate = {
            "relu": lambda x: np.maximum(x, 0),
            "gelu": np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        }[activation]

    def affine(self, x: Array, weight: str, bias: str, rows: slice = slice(None)) -> Array:
        return x @ self.state[weight][rows].T + (self.state[bias][rows] if bias in self.state else 0)

    def norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return normed * self.state[f"{name}.weight"] + self.state.get(f"{name}.bias", 0)

    def residual(self, x: Array, norm: str, branch: Callable[[Array], Array]) -> Array:
        return x + branch(self.norm(x, norm)) if self.norm_first else self.norm(x + branch(x), norm)

    def attend(self, name: str, x: Array, memory: Array, seen: Array, bias: Array = None) -> Array:
        thirds = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
        q, k, v = (
            self.affine(source, f"{name}.in_proj_weight", f"{name}.in_proj_bias", rows)
            .reshape(len(source), -1, HEADS, WIDTH // HEADS)
            .swapaxes(1, 2)
            for source, rows in zip((x, memory, memory), thirds, strict=True)
        )
        out = oracle.attention(q, k, v, seen, bias=bias)[0].swapaxes(1, 2).reshape(x.shape)
        return self.affine(out, f"{name}.out_proj.weight", f"{name}.out_proj.bias")

    def feed_forward(self, x: Array) -> Array:
        inner = self.activate(self.affine(x, "linear1.weight", "linear1.bias"))
        return self.affine(inner, "linear2.weight", "linear2.bias")

    def encoder(self, x: Array, seen: Array, bias: Array = None) -> Array:
        x = self.residual(x, "norm1", lambda h: self.attend("self_attn", h, h, seen, bias))
        return self.residual(x, "norm2", self.feed_forward)

    def decoder(self, x: Array, memory: Array, seen: Array, memory_seen: Array, bias: Array) -> Array:
        x = self.residual(x, "norm1", lambda h: self.attend("self_attn", h, h, seen, bias))
        x = self.residual(x, "norm2", lambda h: self.attend("multihead_attn", h, memory, memory_seen))
        return self.residual(x, "norm3", self.feed_forward)


def agree(got: Array, want: Array) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.fixture
def x(rng: np.random.Generator) -> Array:
    return normal(rng, BATCH, 7, WIDTH)


@pytest.fixture
def memory(rng: np.random.Generator) -> Array:
    return normal(rng, BATCH, 10, WIDTH)


# The definition


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer(isa: str, norm_first: bool, activation: str, bias: bool, rng: np.random.Generator) -> None:
    state = layer_state(rng, bias=bias)
    ours = DecoderLayer.from_torch(state, HEADS, norm_first=norm_first, activation=activation, eps=1e-3)
    definition = Definition(state, norm_first, activation, eps=1e-3)
    lengths, memory_lengths = [7, 3, 5], [1, 10, 6]
    for q_len, kv_len in ((7, 10), (12, 6), (1, 1)):
        x, memory = normal(rng, BATCH, q_len, WIDTH), normal(rng, BATCH, kv_len, WIDTH)
        padding = {"kv_lengths": np.minimum(lengths, q_len), "memory_lengths": np.minimum(memory_lengths, kv_len)}
        seen = oracle.visible(Causal(), q_len, q_len, batch=BATCH, kv_lengths=padding["kv_lengths"], q_offset=0)
        near = SlidingWindow(left=4, right=2)
        memory_seen = oracle.visible(near, q_len, kv_len, batch=BATCH, kv_lengths=padding["memory_lengths"], q_offset=0)
        by_pair, weights = normal(rng, HEADS, q_len, q_len), []
        got = ours(x, memory, memory_mask=near, bias=by_pair, cross_weights=weights, **padding)
        agree(got, definition.decoder(x, memory, seen, memory_seen, by_pair))
        np.testing.assert_array_equal(weights[0] > 0, np.broadcast_to(memory_seen, weights[0].shape))


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer(norm_first: bool, x: Array, rng: np.random.Generator) -> None:
    state = layer_state(rng, "encoder")
    ours = EncoderLayer.from_torch(state, HEADS, norm_first=norm_first)
    definition, where = Definition(state, norm_first, "relu"), {"batch": BATCH, "q_offset": 0}
    agree(ours(x), definition.encoder(x, oracle.visible(None, 7, 7, **where)))
    seen = oracle.visible(SlidingWindow(2, 1), 7, 7, kv_lengths=[7, 2, 5], **where)
    bias = normal(rng, HEADS, 7, 7)
    got = ours(x, mask=SlidingWindow(2, 1), kv_lengths=[7, 2, 5], bias=bias)
    agree(got, definition.encoder(x, seen, bias))


def test_a_plan_serves_as_a_mask(x: Array, memory: Array, rng: np.random.Generator) -> None:
    layer, window = DecoderLayer.from_torch(layer_state(rng), HEADS), SlidingWindow(3, 0)
    plan = window.plan(7, 7, batch=BATCH, kv_lengths=[7, 4, 7], q_offset=0)
    memory_plan = window.plan(7, 10, batch=BATCH, q_offset=0)
    want = layer(x, memory, mask=window, memory_mask=window, kv_lengths=[7, 4, 7])
    np.testing.assert_array_equal(layer(x, memory, mask=plan, memory_mask=memory_plan), want)
    np.testing.assert_array_equal(layer(x, memory, mask=plan, memory_mask=memory_plan, kv_lengths=[7, 4, 7]), want)


# Caches


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 7, [3, 1, 2, 1]])
def test_steps_equal_one_call(
    norm_first: bool, chunks: list[int], x: Array, memory: Array, rng: np.random.Generator
) -> None:
    """Bit for bit, self-attention under the look-ahead mask and a memory mask that speaks of positions."""
    layer = DecoderLayer.from_torch(layer_state(rng), HEADS, norm_first=norm_first)
    options: dict[str, Any] = {"memory_mask": SlidingWindow(left=1, right=2), "memory_lengths": [10, 4, 7]}
    want_weights: list[Array] = []
    want = layer(x, memory, cross_weights=want_weights, **options)
    assert not np.array_equal(want, layer(x, memory, memory_lengths=[10, 4, 7])), "the memory mask must matter"
    cache, projected = KVCache(1, BATCH, HEADS, 7, WIDTH // HEADS), layer.cross.project(memory)
    parts, weights = [], []
    for start, n in zip(np.cumsum([0, *chunks]), chunks, strict=False):
        seen: list[Array] = []
        new = x[:, start : start + n]
        parts.append(layer(new, projected, cache=cache[0], cross_weights=seen, **options))
        weights += seen
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), want)
    np.testing.assert_array_equal(np.concatenate(weights, axis=2), want_weights[0])


def test_an_encoder_layer_with_a_cache_is_a_decoder_only_layer(x: Array, rng: np.random.Generator) -> None:
    layer = EncoderLayer.from_torch(layer_state(rng, "encoder"), HEADS, norm_first=True)
    cache = KVCache(1, BATCH, HEADS, 7, WIDTH // HEADS)
    steps = [layer(x[:, t : t + 1], mask=Causal(), cache=cache[0]) for t in range(7)]
    np.testing.assert_array_equal(np.concatenate(steps, axis=1), layer(x, mask=Causal()))


def test_ragged_prompts_and_the_steps_behind_them(x: Array, rng: np.random.Generator) -> None:
    """Prompts padded on the right, then one token each: the bits of each sequence alone."""
    layer = EncoderLayer.from_torch(layer_state(rng, "encoder"), HEADS, norm_first=True)
    prompt, cache = np.array([6, 1, 4]), KVCache(1, BATCH, HEADS, 7, WIDTH // HEADS)
    first = layer(x[:, :6], mask=Causal(), cache=cache[0], new_lengths=prompt)
    step = layer(np.stack([x[b, n : n + 1] for b, n in enumerate(prompt)]), mask=Causal(), cache=cache[0])
    for b, n in enumerate(prompt):
        alone = layer(x[b : b + 1, : n + 1], mask=Causal())[0]
        np.testing.assert_array_equal(first[b, :n], alone[:n])
        np.testing.assert_array_equal(step[b], alone[n:])


# Padding


def test_padding_is_not_read(x: Array, memory: Array, rng: np.random.Generator) -> None:
    """Whatever stands past the lengths, the positions before them keep their bits; alone, they have the same."""
    layer = DecoderLayer.from_torch(layer_state(rng), HEADS)
    lengths, memory_lengths = np.array([7, 3, 5]), np.array([2, 10, 6])
    want = layer(x, memory, kv_lengths=lengths, memory_lengths=memory_lengths)
    garbage = [np.where(np.arange(a.shape[1])[:, None] < n[:, None, None], a, np.float32(np.nan))
               for a, n in ((x, lengths), (memory, memory_lengths))]  # fmt: skip
    got = layer(*garbage, kv_lengths=lengths, memory_lengths=memory_lengths)
    for b, (n, m) in enumerate(zip(lengths, memory_lengths, strict=True)):
        np.testing.assert_array_equal(got[b, :n], want[b, :n])
        np.testing.assert_array_equal(layer(x[b : b + 1, :n], memory[b : b + 1, :m])[0], want[b, :n])


def test_who_sees_nothing_gets_zeros_from_attention(x: Array, rng: np.random.Generator) -> None:
    attention = MultiHeadAttention.from_torch(attention_state(rng), HEADS)
    nothing = ~Full()
    np.testing.assert_array_equal(
        attention(x, mask=nothing), np.broadcast_to(np.asarray(attention.out.bias), (BATCH, 7, WIDTH))
    )
    layer = DecoderLayer.from_torch(layer_state(rng), HEADS)
    assert np.isfinite(layer(x, x, mask=nothing, memory_mask=nothing)).all()
    assert np.isfinite(layer(x, x, mask=Causal() & Padding(0), memory_lengths=0)).all()


# Multi-head attention alone


def separate(state: dict[str, Array]) -> dict[str, Array]:
    """The same projections under the names that torch uses where the widths differ."""
    parts = zip("qkv", np.split(state["in_proj_weight"], 3), strict=True)
    rest = {name: tensor for name, tensor in state.items() if name != "in_proj_weight"}
    return rest | {f"{part}_proj_weight": weight for part, weight in parts}


@pytest.mark.parametrize("bias", [True, False])
def test_the_ways_to_say_self_attention(bias: bool, x: Array, rng: np.random.Generator) -> None:
    state = attention_state(rng, bias=bias)
    attention = MultiHeadAttention.from_torch(state, HEADS)
    want = attention(x, mask=Causal())
    np.testing.assert_array_equal(attention(x, x, mask=Causal()), want)
    np.testing.assert_array_equal(attention(x, x, x, mask=Causal()), want)
    np.testing.assert_array_equal(attention(x, attention.project(x), mask=Causal()), want)
    np.testing.assert_array_equal(MultiHeadAttention.from_torch(separate(state), HEADS)(x, mask=Causal()), want)


def test_key_and_value_of_other_widths(rng: np.random.Generator) -> None:
    def affine(out: int, width: int, bias: bool = True) -> Linear:
        return Linear(normal(rng, out, width), normal(rng, out) if bias else None)

    query, key, value = (normal(rng, BATCH, n, width) for n, width in ((5, 24), (9, 16), (9, 7)))
    mixed = MultiHeadAttention(affine(32, 24), affine(32, 16, bias=False), affine(32, 7), affine(24, 32), 4)
    seen = oracle.visible(Causal(), 5, 9, batch=BATCH, kv_lengths=[9, 5, 6])
    q, k, v = (
        (source @ part.weight.astype(float).T + (0 if part.bias is None else part.bias))
        .reshape(BATCH, -1, 4, 8)
        .swapaxes(1, 2)
        for source, part in ((query, mixed.q), (key, mixed.k), (value, mixed.v))
    )
    out, _, weights = oracle.attention(q, k, v, seen)
    want = out.swapaxes(1, 2).reshape(BATCH, 5, 32) @ mixed.out.weight.astype(float).T + mixed.out.bias
    where: dict[str, Any] = {"mask": Causal(), "kv_lengths": [9, 5, 6]}
    np.testing.assert_allclose(mixed(query, key, value, **where), want, rtol=0, atol=3e-5)
    projected = mixed.project(key, value)
    np.testing.assert_array_equal(mixed(query, projected, **where), mixed(query, key, value, **where))
    np.testing.assert_allclose(mixed.weights(query, key, **where), weights, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(mixed.weights(query, projected, **where), mixed.weights(query, key, **where))

    memory = MultiHeadAttention(affine(32, 24), affine(32, 16, bias=False), affine(32, 16), affine(24, 32), 4)
    np.testing.assert_array_equal(memory(query, key), memory(query, key, key))


def test_weights_of_padded_self_attention(x: Array, rng: np.random.Generator) -> None:
    attention = MultiHeadAttention.from_torch(attention_state(rng), HEADS)
    weights = attention.weights(x, mask=Causal(), kv_lengths=[7, 3, 5])
    seen = oracle.visible(Causal(), 7, 7, batch=BATCH, heads=HEADS, kv_lengths=[7, 3, 5], q_offset=0)
    np.testing.assert_array_equal(weights > 0, seen)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-6)


# Weights of PyTorch, without PyTorch


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_tensors_of_other_dtypes_are_converted(dtype: Any, x: Array, rng: np.random.Generator) -> None:
    state = {name: tensor.astype(dtype) for name, tensor in layer_state(rng).items()}
    rounded = {name: tensor.astype(np.float32) for name, tensor in state.items()}
    got, want = (DecoderLayer.from_torch(tensors, HEADS)(x, x) for tensors in (state, rounded))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_weights_are_copies(x: Array, rng: np.random.Generator) -> None:
    state = layer_state(rng)
    layer = DecoderLayer.from_torch(state, HEADS)
    want = layer(x, x)
    for tensor in state.values():
        tensor[:] = 0
    np.testing.assert_array_equal(layer(x, x), want)


def test_a_layer_of_a_stack_is_found_by_its_prefix(x: Array, rng: np.random.Generator) -> None:
    states = [layer_state(rng), layer_state(rng)]
    stack = {f"layers.{i}.{name}": tensor for i, state in enumerate(states) for name, tensor in state.items()}
    for i, state in enumerate(states):
        got = DecoderLayer.from_torch(stack, HEADS, prefix=f"layers.{i}.")(x, x)
        np.testing.assert_array_equal(got, DecoderLayer.from_torch(state, HEADS)(x, x))


def test_an_activation_may_be_a_function(x: Array, rng: np.random.Generator) -> None:
    state = layer_state(rng)
    got = DecoderLayer.from_torch(state, HEADS, activation=lambda h: np.maximum(h, np.float32(0)))(x, x)
    np.testing.assert_array_equal(got, DecoderLayer.from_torch(state, HEADS)(x, x))


def changed(rng: np.random.Generator, kind: str = "decoder", **tensors: Any) -> dict[str, Any]:
    """A layer's tensors with some replaced, added, or removed (None)."""
    state = layer_state(rng, kind) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda r: DecoderLayer.from_torch(layer_state(r), 5),
            ValueError,
            "heads must divide the 24 outputs of q, got 5",
        ),
        (
            lambda r: DecoderLayer.from_torch(layer_state(r), 0),
            ValueError,
            "heads must divide the 24 outputs of q, got 0",
        ),
        (lambda r: DecoderLayer.from_torch(layer_state(r), 4.0), TypeError, "heads must be an int, got float"),
        (
            lambda r: DecoderLayer.from_torch([1], 4),
            TypeError,
            "state must map names to tensors, got list; pass module.st",
        ),
        (
            lambda r: DecoderLayer.from_torch(layer_state(r, "encoder"), 4),
            ValueError,
            "state must have multihead_attn.q_proj_weight, got .* besides what was read; check the class and",
        ),
        (
            lambda r: EncoderLayer.from_torch(layer_state(r), 4),
            ValueError,
            r"state must hold this layer's tensors only, got multihead_attn\.in_proj_bias, .*, norm3\.weight besides",
        ),
        (lambda r: EncoderLayer.from_torch(layer_state(r), 4, prefix="x."), ValueError, "x.self_attn.* got nothing"),
        (
            lambda r: DecoderLayer.from_torch(layer_state(r), 4, activation="mish"),
            ValueError,
            "activation must be one of gelu, .*relu, .*got 'mish'",
        ),
        (
            lambda r: DecoderLayer.from_torch(changed(r, norm2__weight=np.ones(24, int)), 4),
            TypeError,
            "norm2.weight must be floating, got int64",
        ),
        (
            lambda r: DecoderLayer.from_torch(changed(r, norm2__weight=None), 4),
            ValueError,
            "state must have norm2.weight",
        ),
        (
            lambda r: DecoderLayer.from_torch(changed(r, linear1__weight=np.ones((7, 24)), linear1__bias=None), 4),
            ValueError,
            "down must have as many inputs as up has outputs, 7, got 40",
        ),
        (
            lambda r: DecoderLayer.from_torch(changed(r, linear1__bias=np.ones(3)), 4),
            ValueError,
            r"bias must have shape \(40,\), got \(3,\)",
        ),
        (
            lambda r: DecoderLayer.from_torch(changed(r, linear1__weight=np.ones(3)), 4),
            ValueError,
            r"weight must have shape \(out_features, in_features\), got \(3,\)",
        ),
        (
            lambda r: MultiHeadAttention.from_torch({"in_proj_weight": np.ones((4, 4))}, 4),
            ValueError,
            r"in_proj_weight must have rows for q, k and v alike, got shape \(4, 4\)",
        ),
        (
            lambda r: MultiHeadAttention.from_torch(attention_state(r) | {"bias_k": np.ones((1, 1, 24))}, 4),
            ValueError,
            "got bias_k besides",
        ),
        (
            lambda r: MultiHeadAttention(*(Linear(normal(r, n, 6)) for n in (8, 4, 8, 6)), 2),
            ValueError,
            "k must have as many outputs as q, 8, got 4",
        ),
        (
            lambda r: MultiHeadAttention(*(Linear(normal(r, 8, 6)) for _ in range(4)), 2),
            ValueError,
            "out must have as many inputs as q has outputs, 8, got 6",
        ),
    ],
)
def test_weights_that_do_not_fit(make: Any, error: type[Exception], message: str, rng: np.random.Generator) -> None:
    with pytest.raises(error, match=message):
        make(rng)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda f, x: f(x.astype(float), x),
            TypeError,
            "x must be a NumPy array of float32, got dtype float64; convert",
        ),
        (lambda f, x: f(x.tolist(), x), TypeError, "x must be a NumPy array of float32, got list"),
        (lambda f, x: f(x[0], x), ValueError, r"x must have shape \(batch, len, 24\), got \(7, 24\)"),
        (lambda f, x: f(x[..., :8], x), ValueError, r"x must have shape \(batch, len, 24\), got \(3, 7, 8\)"),
        (lambda f, x: f(x, x[..., :8]), ValueError, r"memory must have shape \(batch, len, 24\), got \(3, 7, 8\)"),
        (lambda f, x: f(x, x, mask=np.ones((7, 7))), TypeError, "mask"),
        (lambda f, x: f(x, x, memory_lengths=[8, 1, 1]), ValueError, "kv_lengths"),
        (lambda f, x: f(x, x[:2]), ValueError, "batch"),
        (lambda f, x: f.cross(x, x, cache=KVCache(1, 3, 4, 7, 6)[0]), ValueError, "cache must be None with key"),
        (lambda f, x: f.cross.weights(x, x[0]), ValueError, r"key must have shape \(batch, len, 24\)"),
        (lambda f, x: f.cross(x, x, x[..., :3]), ValueError, r"value must have shape \(batch, len, 24\)"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str, x: Array, rng: np.random.Generator) -> None:
    layer = DecoderLayer.from_torch(layer_state(rng), HEADS)
    with pytest.raises(error, match=message):
        call(layer, x)


def test_layers_say_what_they_are(rng: np.random.Generator) -> None:
    layer = EncoderLayer.from_torch(layer_state(rng, "encoder", bias=False), HEADS)
    assert repr(layer.attention) == (
        "MultiHeadAttention(q=Linear(24, 24, bias=False), k=Linear(24, 24, bias=False), "
        "v=Linear(24, 24, bias=False), out=Linear(24, 24, bias=False), heads=4)"
    )
    assert repr(layer.attention_norm) == "LayerNorm(24, eps=1e-05)"
    assert isinstance(layer.feed_forward, FeedForward)
    assert isinstance(layer.attention.project(normal(rng, 1, 2, WIDTH)), KeyValues)
    assert {"DecoderLayer", "EncoderLayer", "MultiHeadAttention"} <= set(maskattn.__all__)
