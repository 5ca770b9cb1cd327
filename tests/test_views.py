"""Views of cross-attention: of some heads as of all, after a generation as during it; and heads that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn.decoder.memory import CrossView
from maskattn.decoder.multi_head import MultiHeadAttention
from maskattn.decoder.projection import Linear
from maskattn.decoder.views import cross_attention
from tiny_families import config, write

SOURCES = [np.array(ids) for ids in ([5, 6, 7, 8, 9, 10, 1], [4, 1], [11, 12, 13, 1])]
PROMPTS = [np.array(ids) for ids in ([2], [2, 5, 6], [2, 7])]
TARGETS = [np.array(ids) for ids in ([3, 4], [8, 9, 5, 6, 1], [3, 1])]


@pytest.fixture(params=[("marian", "float32"), ("t5", "float32"), ("t5", "int8")], ids=str)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    family, dtype = request.param
    return maskattn.load(write(tmp_path, config(family)), dtype=dtype)


def sizes(model: Any) -> tuple[int, int]:
    return model._forward.decoder.sizes.layers, model._forward.decoder.sizes.heads


def test_rows_have_the_bits_of_the_steps_that_decoded_them(model: Any) -> None:
    forward, (layers, heads) = model._forward, sizes(model)
    memory = forward.encode(SOURCES)
    afterwards = cross_attention(forward, PROMPTS, TARGETS, memory)
    for i, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        assert afterwards[i].shape == (layers, heads, len(target), len(SOURCES[i]))
        assert afterwards[i].dtype == np.float32
        np.testing.assert_allclose(afterwards[i].sum(-1), 1, rtol=0, atol=1e-5)
        alone, cache = forward.encode([SOURCES[i]]), forward.new_cache(1, 16)
        for step, inputs in enumerate([prompt, *target[:-1, None]]):
            during: dict[int, Any] = {}
            view = CrossView(dict.fromkeys(range(layers)), during.__setitem__)
            forward.decode(inputs[None], alone, cache, view=view)
            for layer, weights in during.items():
                np.testing.assert_array_equal(afterwards[i][layer, :, step], weights[0, :, -1])


def test_some_heads_are_those_of_all(model: Any) -> None:
    memory = model._forward.encode(SOURCES)
    whole = cross_attention(model._forward, PROMPTS, TARGETS, memory)
    pairs = [(1, 1), (0, 1), (1, 0), (1, 1)]
    some = cross_attention(model._forward, PROMPTS, TARGETS, memory, pairs)
    for every, chosen in zip(whole, some, strict=True):
        np.testing.assert_array_equal(chosen, np.stack([every[pair] for pair in pairs]))
    assert [view.shape for view in cross_attention(model._forward, PROMPTS, TARGETS, memory, [])] == [
        (0, len(target), len(source)) for target, source in zip(TARGETS, SOURCES, strict=True)
    ]


def test_layers_behind_the_last_one_are_not_run(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = model._forward.encode(SOURCES)
    want = cross_attention(model._forward, PROMPTS, TARGETS, memory)
    deepest = model._forward.decoder.layers[-1]
    monkeypatch.setattr(type(deepest), "__call__", refuse_layer(deepest, type(deepest).__call__))
    for every, chosen in zip(want, cross_attention(model._forward, PROMPTS, TARGETS, memory, [(0, 1)]), strict=True):
        np.testing.assert_array_equal(chosen[0], every[0, 1])
    with pytest.raises(AssertionError, match="the last layer"):
        cross_attention(model._forward, PROMPTS, TARGETS, memory)


def refuse_layer(refused: Any, call: Any) -> Any:
    def checked(self: Any, *arguments: Any, **options: Any) -> Any:
        assert self is not refused, "the last layer"
        return call(self, *arguments, **options)

    return checked


def test_the_public_view(model: Any) -> None:
    layers, heads = sizes(model)
    source, prompt, target = (ids.tolist() for ids in (SOURCES[0], PROMPTS[1], TARGETS[1]))
    whole = model.cross_attention(source, target, prompt_ids=prompt)
    assert whole.shape == (layers, heads, len(target), len(source))
    some = model.cross_attention(source, target, prompt_ids=prompt, heads=[(-1, 0), (0, -1)])
    np.testing.assert_array_equal(some, np.stack([whole[-1, 0], whole[0, -1]]))
    assert not np.array_equal(whole, model.cross_attention(source, target))


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        (3, TypeError, r"heads must be a list of pairs \(layer, head\), got 3"),
        ([3], TypeError, r"heads\[0\] must be a pair \(layer, head\), got 3"),
        ([(0, 0), (0, 1.5)], TypeError, r"heads\[1\] must hold integers, got 1.5 \(float\) for its head"),
        ([(9, 0)], ValueError, r"heads\[0\] must name one of \d layers, 0 to \d, got 9"),
        ([(0, -9)], ValueError, r"heads\[0\] must name one of \d heads, 0 to \d, got -9"),
    ],
)
def test_heads_that_are_not_there(model: Any, heads: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.cross_attention([5, 1], [4, 1], heads=heads)


def test_weights_of_some_heads_under_grouped_queries_masks_and_biases(rng: np.random.Generator) -> None:
    maps = [Linear(rng.standard_normal((out, 12), dtype=np.float32)) for out in (24, 12, 12)]
    layer = MultiHeadAttention(*maps, Linear(rng.standard_normal((12, 24), dtype=np.float32)), heads=4, kv_heads=2)
    x, y = rng.standard_normal((2, 5, 12), dtype=np.float32), rng.standard_normal((2, 7, 12), dtype=np.float32)
    some = [3, 0, 2]
    by_head = maskattn.masks.Dense(rng.random((4, 5, 7)) < 0.7)
    for options in ({}, {"kv_lengths": [3, 7]}, {"mask": by_head}, {"bias": maskattn.ALiBi.for_heads(4)}):
        for keys in (y, layer.project(y)):
            want = layer.weights(x, keys, **options)[:, some]
            np.testing.assert_array_equal(layer.weights(x, keys, heads=some, **options), want)
    with pytest.raises(ValueError, match="heads must be from 0 to 3, got 4"):
        layer.weights(x, y, heads=[0, 4])


def test_generation_brings_it_along(model: Any) -> None:
    """In batches, with prompts of several lengths: what cross_attention says of the tokens, which are the same."""
    options: dict[str, Any] = {"prompt_ids": [list(prompt) for prompt in PROMPTS], "max_new_tokens": 6, "batch_size": 2}
    plain = model.generate_ids(SOURCES, **options)
    whole = model.generate_ids(SOURCES, return_cross_attention=True, **options)
    some = model.generate_ids(SOURCES, return_cross_attention=[(-1, 0), (0, 1)], **options)
    assert plain == whole == some
    assert plain[0].cross_attention is None
    for source, prompt, every, chosen in zip(SOURCES, PROMPTS, whole, some, strict=True):
        want = model.cross_attention(source, list(every), prompt_ids=prompt)
        np.testing.assert_array_equal(every.cross_attention, want)
        np.testing.assert_array_equal(chosen.cross_attention, want[[-1, 0], [0, 1]])
    with pytest.raises(ValueError, match=r"return_cross_attention\[0\] must name one of 2 layers, 0 to 1, got 2"):
        model.generate_ids(SOURCES, return_cross_attention=[(2, 0)])


def test_a_model_without_an_encoder_has_none(tmp_path: Path) -> None:
    model = maskattn.load(write(tmp_path, config("gpt2")))
    with pytest.raises(ValueError, match="return_cross_attention needs an encoder and a decoder, got family gpt2"):
        model.generate_ids([[3]], return_cross_attention=True)
