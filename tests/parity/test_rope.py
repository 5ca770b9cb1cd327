"""Rotary positions under every scaling, for drawn parameters: the cosines and sines of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding  # noqa: E402 - after the skips

from maskattn.decoder.rotary import ROPES, read_rope  # noqa: E402

HEAD_DIM = 16
factors = st.floats(1, 40)
PARAMETERS: dict[str, Any] = {
    "default": {},
    "linear": {"factor": factors},
    "dynamic": {"factor": factors},
    "llama3": {
        "factor": factors,
        "low_freq_factor": st.floats(0.5, 2),
        "high_freq_factor": st.floats(2.5, 8),
        "original_max_position_embeddings": st.integers(16, 9000),
    },
    "yarn": {
        "factor": factors,
        "original_max_position_embeddings": st.integers(64, 9000),
        "attention_factor": st.none() | st.floats(0.5, 2),
        "beta_fast": st.sampled_from([16, 32]),
        "beta_slow": st.sampled_from([1, 2]),
        "truncate": st.booleans(),
        "mscale": st.none() | st.floats(0.5, 2),
        "mscale_all_dim": st.none() | st.floats(0.5, 2),
    },
    "longrope": {
        "short_factor": st.lists(st.floats(1, 4), min_size=HEAD_DIM // 2, max_size=HEAD_DIM // 2),
        "long_factor": st.lists(st.floats(4, 30), min_size=HEAD_DIM // 2, max_size=HEAD_DIM // 2),
        "original_max_position_embeddings": st.integers(20, 100),
        "attention_factor": st.none() | st.floats(0.5, 2),
    },
}


def test_all_scalings_are_here() -> None:
    assert set(PARAMETERS) | {"su"} == set(ROPES)


@pytest.mark.parametrize("kind", PARAMETERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rotation(kind: str, data: Any) -> None:
    drawn = {name: data.draw(values, name) for name, values in PARAMETERS[kind].items()}
    rope = {"rope_type": kind, "rope_theta": data.draw(st.sampled_from([500.0, 10000.0, 5e5]), "theta")} | {
        name: value for name, value in drawn.items() if value is not None
    }

    config = transformers.LlamaConfig(
        hidden_size=2 * HEAD_DIM, num_attention_heads=2, max_position_embeddings=128, rope_parameters=dict(rope)
    )
    theirs = Phi3RotaryEmbedding(config)
    length = data.draw(st.integers(1, 300), "length")
    cos, sin = theirs(torch.zeros(1), torch.arange(length)[None])
    ours = read_rope({"rope_parameters": rope, "max_position_embeddings": 128}, {}, HEAD_DIM)
    got = ours.rotation(np.arange(length)[None], np.array([length]))
    for mine, wanted in ((got.cos, cos), (got.sin, sin)):
        np.testing.assert_allclose(mine[0, 0], wanted[0, :, : HEAD_DIM // 2].numpy(), rtol=0, atol=2e-4)
