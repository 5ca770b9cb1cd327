"""The README's example runs on a device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from device_arrays import Lent, back, lent

import maskattn
from strategies import normal


def test_the_example_runs() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"^## On a GPU\n.*?^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    q, k, v = (normal(np.random.default_rng(0), 2, 1, 100, 16) for _ in range(3))
    names: dict[str, Any] = {"maskattn": maskattn, "masks": maskattn.masks, "window": maskattn.masks.Causal()}
    names |= {name: lent(array) for name, array in zip("qkv", (q, k, v), strict=True)}
    small = {"1000": "100", "700": "70", "kv_heads=8": "kv_heads=1", "head_dim=64": "head_dim=16"}
    for there, here in small.items():
        assert there in example
        example = example.replace(there, here)
    exec(example, names)
    assert isinstance(names["out"], Lent)
    want = maskattn.attention(q, k, v, mask=maskattn.masks.Causal())
    np.testing.assert_allclose(back(names["out"]), want, rtol=0, atol=4e-6)
    assert back(names["weights"]).shape == (2, 1, 1, 100)
    assert names["bias"].shape == (1, 1, 100, 100)
