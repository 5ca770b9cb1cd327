"""The decoder's parts against their formulas: positions, activations, norms, caches, greedy rules, tokenizer."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn.decoder
import tiny_marian
from maskattn.decoder.activations import ACTIVATIONS, CoreActivation
from maskattn.decoder.multi_head import join_heads, split_heads
from maskattn.decoder.norms import LayerNorm, RMSNorm
from maskattn.decoder.options import Options
from maskattn.decoder.positions import sinusoidal
from maskattn.decoder.processors import Step
from maskattn.decoder.rules import Rules
from maskattn.decoder.text import CharacterTokenizer
from maskattn.linear import linear
from tiny_marian import EOS, PAD


@pytest.mark.parametrize(("length", "width"), [(5, 8), (48, 7), (3, 1), (513, 64)])
def test_sinusoidal_positions(length: int, width: int) -> None:
    got, half = sinusoidal(length, width), (width + 1) // 2
    assert got.shape == (length, width)
    assert got.dtype == np.float32
    for p in {0, 1, length - 1}:
        for i in range(half):
            angle = p / 10000 ** (2 * i / width)
            assert got[p, i] == pytest.approx(math.sin(angle), abs=1e-7)
            if half + i < width:
                assert got[p, half + i] == pytest.approx(math.cos(angle), abs=1e-7)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("silu", lambda x: x * _sigmoid(x)),
        ("swish", lambda x: x * _sigmoid(x)),
        ("gelu", lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2))),
        ("gelu_new", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("quick_gelu", lambda x: x * _sigmoid(1.702 * x)),
        ("tanh", math.tanh),
        ("linear", lambda x: x),
    ],
)
def test_activations(isa: str, name: str, definition: Callable[[float], float]) -> None:
    x = np.concatenate([np.linspace(-12, 12, 997), [-1e4, -100, -0.0, 0, 100, 1e4]]).astype(np.float32)
    function, want = ACTIVATIONS[name], [definition(float(v)) for v in x]
    assert function(x).dtype == np.float32
    np.testing.assert_allclose(function(x), want, rtol=6e-7, atol=1e-6)
    for n in (1, 3, 17):  # an element's bits depend on that element only, and views come in
        np.testing.assert_array_equal(function(x[5 : 5 + n]), function(x)[5 : 5 + n])
        np.testing.assert_array_equal(function(x[::-n]), function(x)[::-n])
    both = np.stack([x[:1000].reshape(10, 100), x[1:1001].reshape(10, 100)], axis=1).reshape(10, 200)
    if isinstance(function, CoreActivation):
        np.testing.assert_array_equal(function.gated(both), function(both[:, :100]) * both[:, 100:])


@pytest.mark.parametrize("width", [1, 3, 16, 63, 64, 100, 513])
def test_norms(isa: str, rng: np.random.Generator, width: int) -> None:
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 50, width), width, width))
    x[0, 0] = 4.0  # A constant row: its variance is zero.
    wide = x.astype(float)
    plain = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * weight
    root = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-5) * weight
    for norm, want in (
        (LayerNorm(weight, bias), plain + bias),
        (LayerNorm(weight), plain),
        (RMSNorm(weight, 1e-5), root),
    ):
        got = norm(x)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6)
        np.testing.assert_array_equal(norm(x[1:2, 7:9]), got[1:2, 7:9])
        np.testing.assert_array_equal(norm(x[::2, ::-3]), got[::2, ::-3])
    with pytest.raises(TypeError, match="x must be float32, got float64 array"):
        LayerNorm(weight)(wide)
    with pytest.raises(ValueError, match="weight must have one value per element of x's last axis"):
        RMSNorm(weight)(np.zeros((2, width + 1), np.float32))


def test_linear() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4), (5, 4), 5))
    want = np.einsum("bni,oi->bno", x, weight)
    np.testing.assert_allclose(linear(x, weight), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(linear(x, weight, bias), want + bias, rtol=0, atol=1e-5)
    assert linear(x[:, :0], weight, bias).shape == (2, 0, 5)
    with pytest.raises(ValueError, match=r"weight must have shape \(out_features, in_features\)"):
        linear(x, weight.T)
    with pytest.raises(ValueError, match=r"bias must have shape \(5,\), got \(4,\)"):
        linear(x, weight, bias[:4])


def test_heads_are_views_and_join_again() -> None:
    x = np.arange(2 * 3 * 24, dtype=np.float32).reshape(2, 3, 24)
    q, k = split_heads(x, 4, 4)
    assert q.shape == (2, 4, 3, 3)
    assert np.shares_memory(q, x)
    assert k.strides[-1] == 4
    np.testing.assert_array_equal(np.concatenate([join_heads(q), join_heads(k)], axis=-1), x)


def test_families_are_data() -> None:
    """A family knows its declaration type and masks, nothing else."""
    folder = Path(maskattn.decoder.__file__).parent.parent / "families"
    files = [file for file in folder.glob("*.py") if file.stem not in ("__init__", "family")]
    assert files
    for file in files:
        text = file.read_text()
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {getattr(node, "module", None) or node.names[0].name for node in nodes} - {"maskattn"}
        assert all(m.startswith("maskattn.families.") or m.split(".")[0] in sys.stdlib_module_names for m in modules)
        assert {node.names[0].name for node in nodes if getattr(node, "module", None) == "maskattn"} <= {"masks"}
        assert len(text.splitlines()) < 60


@pytest.mark.parametrize(
    ("settings", "tokens", "last", "allowed"),
    [
        ({}, [0, 3], False, "012345"),
        ({"bad_words_ids": [[4], [3, 5], [2, 1]]}, [0, 3], False, "0123"),
        ({"bad_words_ids": [[4], [3, 5], [2, 1]]}, [0, 2], False, "0235"),
        ({"bad_words_ids": [[1, 3, 2]]}, [3], False, "012345"),
        ({"bad_words_ids": [[1, 3, 2]]}, [1, 2], False, "012345"),
        ({"bad_words_ids": [[1], [2]], "eos_token_id": 1}, [0], False, "01345"),
        ({"min_length": 3, "eos_token_id": [1, 2]}, [0, 3], False, "0345"),
        ({"min_length": 3, "eos_token_id": [1, 2]}, [0, 3, 3], False, "012345"),
        ({"min_new_tokens": 2, "eos_token_id": 1}, [0, 3], False, "02345"),
        ({"min_new_tokens": 2, "eos_token_id": 1}, [0, 3, 3], False, "012345"),
        ({"forced_bos_token_id": 5}, [0], False, "5"),
        ({"forced_bos_token_id": 5}, [0, 5], False, "012345"),
        ({"forced_eos_token_id": 1}, [0, 5], True, "1"),
        ({"forced_eos_token_id": [1, 2]}, [0, 5], True, "12"),
        ({"forced_eos_token_id": 1}, [0, 5], False, "012345"),
        ({"suppress_tokens": [0, 2]}, [0, 5], False, "1345"),
        ({"begin_suppress_tokens": [0, 2]}, [0], False, "1345"),
        ({"begin_suppress_tokens": [0, 2]}, [0, 5], False, "012345"),
        ({"begin_suppress_tokens": [0, 2], "forced_bos_token_id": 3}, [0], False, "3"),
        ({"begin_suppress_tokens": [0, 2], "forced_bos_token_id": 3}, [0, 3], False, "1345"),
    ],
)
def test_rules(settings: dict[str, Any], tokens: list[int], last: bool, allowed: str) -> None:
    scores = np.zeros((2, 6), np.float32)
    # The second row has another past, so that only what holds for every past may show there.
    step = Step(np.array([tokens, [0] * len(tokens)]), 1, np.array([last, last]), np.arange(2))
    scores = Rules.read(Options(settings, {}, vocab=6)).process(step, scores)
    assert "".join(str(i) for i in range(6) if scores[0, i] > -np.inf) == allowed


def test_token_ids_of_the_generation_config_are_checked() -> None:
    with pytest.raises(ValueError, match="bad_words_ids must hold token ids below 10, got 10"):
        Rules.read(Options({"bad_words_ids": [[10]]}, {}, vocab=10))


def test_character_tokenizer() -> None:
    tokenizer = CharacterTokenizer(tiny_marian.VOCAB, lower=True)
    ids = tokenizer.encode("  March 3, 2024\n")
    assert ids[-1] == EOS
    assert ids[6:8] == [tiny_marian.VOCAB["3"], tiny_marian.VOCAB["<unk>"]]
    assert len(ids) == len("March 3, 2024") + 1
    assert tokenizer.decode([PAD, *tokenizer.encode("2024-03-03")]) == "2024-03-03"
    assert tokenizer.tokens([PAD, 3, EOS]) == ["<pad>", " ", "</s>"]
    assert CharacterTokenizer(tiny_marian.VOCAB).encode("A")[0] == tiny_marian.VOCAB["<unk>"], "lower is off by default"
    with pytest.raises(ValueError, match=r"ids must be in vocab\.json, got 99"):
        tokenizer.decode([99])
