"""Bad arguments: the right type of error, and a message that names the argument and says what it got."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import maskattn
from maskattn import ALiBi, RelativeBias, cuda
from maskattn.masks import Causal, Dense, Documents, Full, KeyPadding, Padding, PrefixLM

# What is right: batch 2, 4 query heads over 2 key heads, 3 queries, 5 keys, head_dim 8.
F32 = np.float32


def ones(*shape: int, dtype: Any = F32) -> Any:
    return np.ones(shape, dtype)


def arguments() -> dict[str, Any]:
    return {"q": ones(2, 4, 3, 8), "k": ones(2, 2, 5, 8), "v": ones(2, 2, 5, 8)}


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


class OnDevice:
    """What PyTorch and CuPy arrays on a GPU look like."""

    __cuda_array_interface__ = {"shape": (2, 4, 3, 8), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012


Case = tuple[dict[str, Any], type[Exception], str]

# Bad for attention() and attention_weights() alike.
QUERIES_AND_KEYS: list[Case] = [
    # not arrays
    ({"q": [[1.0]]}, TypeError, "^q must be .*array, got list"),
    ({"k": None}, TypeError, "^k must be .*array, got NoneType"),
    # dtype
    ({"q": ones(2, 4, 3, 8, dtype=np.int64)}, TypeError, "^q must be float32, float16, bfloat16 or float64, got int64"),
    (
        {"q": ones(2, 4, 3, 8, dtype=np.complex64)},
        TypeError,
        "^q must be float32, float16, bfloat16 or float64, got complex64",
    ),
    ({"q": ones(2, 4, 3, 8, dtype=object)}, TypeError, "^q must be float32, float16, bfloat16 or float64, got object"),
    ({"q": ones(2, 4, 3, 8).astype(">f4")}, TypeError, "^q must be float32, float16, bfloat16 or float64, got >f4"),
    ({"k": ones(2, 2, 5, 8, dtype=np.int8)}, TypeError, "^k must be float32, float16, bfloat16 or float64, got int8"),
    ({"k": ones(2, 2, 5, 8).astype(">f4")}, TypeError, "^k must be float32, float16, bfloat16 or float64, got >f4"),
    # shape
    ({"q": ones(4, 3, 8)}, ValueError, r"^q must have shape \(batch, .*got .*\(4, 3, 8\)"),
    ({"q": ones(1, 2, 4, 3, 8)}, ValueError, r"^q must have shape \(batch, .*got .*\(1, 2, 4, 3, 8\)"),
    ({"q": np.array(1, F32)}, ValueError, r"^q must have shape \(batch, .*got .*\(\)"),
    ({"k": ones(2, 5, 8)}, ValueError, r"^k must have shape \(batch, .*got .*\(2, 5, 8\)"),
    ({"k": ones(3, 2, 5, 8)}, ValueError, r"^k must have q's batch 2, got 3"),
    ({"k": ones(2, 2, 5, 7)}, ValueError, r"^k must have q's head_dim 8, got 7"),
    ({"k": ones(2, 3, 5, 8)}, ValueError, r"^k must have a number of heads that divides q's 4, got 3"),
    ({"k": ones(2, 8, 5, 8)}, ValueError, r"^k must have a number of heads that divides q's 4, got 8"),
    ({"k": ones(2, 0, 5, 8)}, ValueError, r"^k must have a number of heads that divides q's 4, got 0"),
    (
        {"q": ones(2, 4, 3, 0), "k": ones(2, 2, 5, 0)},
        ValueError,
        r"^q must have a head_dim of at least 1, got .*\(2, 4, 3, 0\)",
    ),
    # strides
    ({"q": ones(2, 4, 3, 16)[..., ::2]}, ValueError, "^q must have a contiguous last axis, got a stride of 8 bytes"),
    ({"q": ones(2, 4, 3, 8)[..., ::-1]}, ValueError, "^q must have a contiguous last axis, got a stride of -4 bytes"),
    (
        {"k": ones(2, 2, 8, 5).swapaxes(2, 3)},
        ValueError,
        "^k must have a contiguous last axis, got a stride of 20 bytes",
    ),
    (
        {"k": np.broadcast_to(F32(1), (2, 2, 5, 8))},
        ValueError,
        "^k must have a contiguous last axis, got a stride of 0",
    ),
    # mask
    ({"mask": "causal"}, TypeError, "^mask must be .*got str"),
    ({"mask": [[True]]}, TypeError, "^mask must be .*got list"),
    ({"mask": Causal}, TypeError, "^mask must be .*got type"),
    ({"mask": ones(3, 5)}, TypeError, "^mask must be a bool array .*got float32"),
    ({"mask": ones(3, 5, dtype=np.uint8)}, TypeError, "^mask must be a bool array .*got uint8"),
    ({"mask": ones(4, 5, dtype=bool)}, ValueError, "q_len of 3 or 1, got 4"),
    ({"mask": ones(3, 6, dtype=bool)}, ValueError, "kv_len of 5 or 1, got 6"),
    ({"mask": ones(3, 3, 5, dtype=bool)}, ValueError, "mask must have a head count of 4 or 1, got 3"),
    ({"mask": ones(2, 1, 3, 5, dtype=bool)[:, :, :, None]}, ValueError, r"mask must broadcast to .*\(2, 1, 3, 1, 5\)"),
    ({"mask": Causal() & Dense(ones(3, 4, dtype=bool))}, ValueError, "kv_len of 5 or 1, got 4"),
    ({"mask": Padding([1, 2, 3])}, ValueError, "mask must .*batch.* 2.*got .*3"),
    ({"mask": ~PrefixLM([1, 2, 3])}, ValueError, "mask must .*batch.* 2.*got .*3"),
    ({"mask": KeyPadding(ones(4, dtype=bool))}, ValueError, "KeyPadding must cover the call's 5 keys, got 4"),
    ({"mask": Documents(np.zeros(4, int))}, ValueError, "Documents.* must cover the call's 5 keys, got 4"),
    ({"mask": Documents(np.zeros(4, int), np.zeros(5, int))}, ValueError, "ids must cover .*5 query positions, got 4"),
    (
        {"mask": Documents(np.zeros(9, int)), "q_offset": [0, 7]},
        ValueError,
        "ids must cover .*10 query positions, got 9",
    ),
    ({"mask": Causal().plan(4, 5)}, ValueError, r"^mask must be planned for .*\(2, 4, 3, 5\).*got .*\(1, 1, 4, 5\)"),
    ({"mask": Causal().plan(3, 6)}, ValueError, r"^mask must be planned for .*\(2, 4, 3, 5\).*got .*\(1, 1, 3, 6\)"),
    ({"mask": Causal().plan(3, 5, batch=3)}, ValueError, r"^mask must be planned for .*got .*\(3, 1, 3, 5\)"),
    ({"mask": Causal().plan(3, 5, heads=2)}, ValueError, r"^mask must be planned for .*got .*\(1, 2, 3, 5\)"),
    ({"mask": Causal().plan(3, 5), "kv_lengths": 4}, ValueError, "kv_lengths.* plan was made with, got 4"),
    ({"mask": Causal().plan(3, 5), "q_offset": 0}, ValueError, "q_offset.* plan was made with, got None and 0"),
    # kv_lengths and q_offset, with a mask and without
    *(
        case
        for mask in (None, Causal())
        for case in (
            ({"mask": mask, "kv_lengths": 6}, ValueError, "^kv_lengths must be from 0 to kv_len = 5, got 6"),
            ({"mask": mask, "kv_lengths": [5, -1]}, ValueError, "^kv_lengths must be from 0 to kv_len = 5, got -1"),
            ({"mask": mask, "kv_lengths": 2**70}, ValueError, "^kv_lengths"),
            ({"mask": mask, "kv_lengths": [1, 2, 3]}, ValueError, r"^kv_lengths must .*\(2,\), got .*\(3,\)"),
            ({"mask": mask, "kv_lengths": [[1, 2]]}, ValueError, r"^kv_lengths must .*\(2,\), got .*\(1, 2\)"),
            ({"mask": mask, "kv_lengths": 2.5}, TypeError, "^kv_lengths must be an integer.*got float"),
            ({"mask": mask, "kv_lengths": ones(2)}, TypeError, "^kv_lengths must be an integer.*got float32"),
            ({"mask": mask, "kv_lengths": ["a", "b"]}, TypeError, "^kv_lengths must be an integer.*got list"),
            ({"mask": mask, "q_offset": [1, 2, 3]}, ValueError, r"^q_offset must .*\(2,\), got .*\(3,\)"),
            ({"mask": mask, "q_offset": 0.5}, TypeError, "^q_offset must be an integer.*got float"),
            ({"mask": mask, "q_offset": "0"}, TypeError, "^q_offset must be an integer.*got str"),
            ({"mask": mask, "q_offset": 2**70}, ValueError, "^q_offset"),
        )
    ),
    # bias
    ({"bias": 1.0}, TypeError, "^bias must be .*array, got float"),
    ({"bias": [0.0] * 5}, TypeError, "^bias must be .*array, got list"),
    ({"bias": ones(3, 5, dtype=bool)}, TypeError, "^bias must be float32, .*, got bool; pass bias.astype"),
    ({"bias": ALiBi.for_heads(3)}, ValueError, "^bias must have one entry per query head, 4, got 3"),
    ({"bias": RelativeBias(np.zeros((8, 5)))}, ValueError, "^bias must have one entry per query head, 4, got 5"),
    ({"bias": ones(4, 5)}, ValueError, r"^bias must be broadcastable to .*\(2, 4, 3, 5\), got .*\(4, 5\)"),
    ({"bias": ones(2, 3, 5)}, ValueError, r"^bias must be broadcastable to .*got .*\(2, 3, 5\)"),
    ({"bias": ones(1, 2, 4, 3, 5)}, ValueError, r"^bias must be broadcastable to .*got .*\(1, 2, 4, 3, 5\)"),
    ({"bias": ones(0)}, ValueError, r"^bias must be broadcastable to .*got .*\(0,\)"),
    # numbers
    ({"scale": np.nan}, ValueError, "^scale must be finite, got nan"),
    ({"scale": np.inf}, ValueError, "^scale must be finite, got inf"),
    ({"scale": "1"}, TypeError, "scale.*got str"),
    ({"threads": 0}, ValueError, "^threads must be from 1 to 4096, got 0"),
    ({"threads": -1}, ValueError, "^threads must be from 1 to 4096, got -1"),
    ({"threads": 5000}, ValueError, "^threads must be from 1 to 4096, got 5000"),
    ({"threads": 2**70}, ValueError, "^threads"),
    ({"threads": 1.0}, TypeError, "^threads must be an integer.*got float"),
    ({"precision": "best"}, ValueError, "^precision must be one of highest, high, medium, got 'best'"),
    ({"softcap": -1.0}, ValueError, "^softcap must be at least 0 .*got -1.0"),
    ({"softcap": np.inf}, ValueError, "^softcap must be .*finite, got inf"),
    ({"softcap": np.nan}, ValueError, "^softcap must be .*finite, got nan"),
    ({"softcap": "30"}, TypeError, "^softcap must be a number, got str"),
    ({"sinks": ones(3)}, ValueError, "^sinks must have one entry per query head, 4, got 3"),
    ({"sinks": ones(2, 4)}, ValueError, r"^sinks must have shape \(q_heads,\), got \(2, 4\)"),
    ({"sinks": [0, 0, 0, np.inf]}, ValueError, "^sinks must be finite, or -inf for none, got inf"),
    ({"sinks": [0, 0, 0, np.nan]}, ValueError, "^sinks must be finite, or -inf for none, got inf or NaN"),
    ({"sinks": ["a"] * 4}, TypeError, "^sinks must be an array of numbers, got <U1"),
]

# Bad for attention() alone.
SHARED = ones(2, 4, 64, 8)
VALUES_AND_OUT: list[Case] = [
    ({"v": [[1.0]]}, TypeError, "^v must be .*array, got list"),
    ({"v": ones(2, 2, 5, 8, dtype=np.int8)}, TypeError, "^v must be float32, float16, bfloat16 or float64, got int8"),
    ({"v": ones(2, 5, 8)}, ValueError, r"^v must have shape \(batch, .*got .*\(2, 5, 8\)"),
    ({"v": ones(1, 2, 5, 8)}, ValueError, r"^v must have k's batch 2, got 1"),
    ({"v": ones(2, 4, 5, 8)}, ValueError, r"^v must have k's kv_heads 2, got 4"),
    ({"v": ones(2, 2, 6, 8)}, ValueError, r"^v must have k's kv_len 5, got 6"),
    ({"v": ones(2, 2, 5, 16)[..., ::2]}, ValueError, "^v must have a contiguous last axis, got a stride of 8 bytes"),
    ({"out": [[1.0]]}, TypeError, "^out must be .*array, got list"),
    ({"out": ones(2, 4, 3, 8, dtype=np.float64)}, TypeError, "^out must have the dtype of q, float32, got float64"),
    ({"out": ones(4, 3, 8)}, ValueError, r"^out must have shape \(2, 4, 3, 8\), got .*\(4, 3, 8\)"),
    ({"out": ones(2, 4, 3, 7)}, ValueError, r"^out must have shape \(2, 4, 3, 8\), got .*\(2, 4, 3, 7\)"),
    (
        {"out": ones(2, 4, 3, 16)[..., ::2]},
        ValueError,
        "^out must have a contiguous last axis, got a stride of 8 bytes",
    ),
    ({"out": read_only(ones(2, 4, 3, 8))}, ValueError, "^out must be writeable, got a read-only array"),
    ({"q": SHARED[:, :, :3], "out": SHARED[:, :, :3]}, ValueError, "^out must not share memory with q"),
    ({"q": SHARED[:, :, :3], "out": SHARED[:, :, 2:5]}, ValueError, "^out must not share memory with q"),
    ({"k": SHARED[:, :2, :5], "out": SHARED[:, :, 4:7]}, ValueError, "^out must not share memory with k"),
    ({"v": SHARED[:, 2:, 5::-1][:, :, 1:], "out": SHARED[:, :, 2:5]}, ValueError, "^out must not share memory with v"),
    ({"bias": SHARED[..., :5][0, 0, :3], "out": SHARED[:, :, 1:4]}, ValueError, "^out must not share memory with bias"),
]

# Bad for attention_weights() alone.
STAGES: list[Case] = [
    ({"stage": "logits"}, ValueError, "^stage must be one of scores, softcap, bias, softmax, got 'logits'"),
    ({"stage": None}, ValueError, "^stage must be one of .*got None"),
]


def names(cases: list[Case]) -> list[str]:
    return [f"{'-'.join(bad)}: {message[:60]}" for bad, _, message in cases]


@pytest.mark.parametrize(("bad", "error", "message"), QUERIES_AND_KEYS + VALUES_AND_OUT,
                         ids=names(QUERIES_AND_KEYS + VALUES_AND_OUT))  # fmt: skip
def test_attention(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        maskattn.attention(**{**arguments(), **bad})


@pytest.mark.parametrize(("bad", "error", "message"), QUERIES_AND_KEYS + STAGES, ids=names(QUERIES_AND_KEYS + STAGES))
def test_attention_weights(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {name: value for name, value in arguments().items() if name != "v"}
    with pytest.raises(error, match=message):
        maskattn.attention_weights(**{**good, **bad})


def test_cuda_arrays_where_cuda_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "maskattn._cuda", None)
    for options in ({"q": OnDevice()}, {"device": "cuda"}):
        with pytest.raises(
            cuda.NotBuilt, match=r"built without CUDA.*pip install \. -C cmake\.define\.MASKATTN_CUDA=ON"
        ) as raised:
            maskattn.attention(**arguments() | options)
        assert isinstance(raised.value, ImportError)
        assert isinstance(raised.value, NotImplementedError)
    with pytest.raises(cuda.NotBuilt, match=r"^q must be .*built without CUDA"):
        maskattn.attention_topk(OnDevice(), OnDevice(), 1)
    with pytest.raises(cuda.NotBuilt, match=r"^out_a must be .*built without CUDA"):
        maskattn.merge_states(*[OnDevice()] * 4)  # type: ignore[arg-type]
    with pytest.raises(cuda.NotBuilt, match=r"built without CUDA"):
        Causal().to_bool(3, 5, device="cuda")
    assert not cuda.is_available()


def test_arrays_of_a_device_among_those_of_the_host() -> None:
    with pytest.raises(NotImplementedError, match=r"^k must be a NumPy array .*CUDA.*\.cpu\(\)"):
        maskattn.attention_topk(ones(2, 4, 3, 8), OnDevice(), 1)  # type: ignore[arg-type]


def test_the_arguments_are_good_otherwise() -> None:
    maskattn.attention(**arguments(), mask=Causal(), bias=ones(3, 5), scale=1, kv_lengths=[5, 2], q_offset=0, threads=1)


def test_arguments_after_the_arrays_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        maskattn.attention(*arguments().values(), Causal())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"q_len": -1}, ValueError, "^q_len must be at least 0, got -1"),
        ({"kv_len": -1}, ValueError, "^kv_len must be at least 0, got -1"),
        ({"batch": -1}, ValueError, "^batch must be at least 0, got -1"),
        ({"heads": -1}, ValueError, "^heads must be at least 0, got -1"),
        ({"q_len": 1.5}, TypeError, "q_len"),
        ({"kv_len": "5"}, TypeError, "kv_len"),
        ({"kv_lengths": 6}, ValueError, "^kv_lengths must be from 0 to kv_len = 5, got 6"),
        ({"kv_lengths": [1, 2, 3], "batch": 2}, ValueError, r"^kv_lengths must .*\(2,\), got .*\(3,\)"),
        ({"q_offset": 0.5}, TypeError, "^q_offset must be an integer.*got float"),
        ({"threads": 0}, ValueError, "^threads must be from 1 to 4096, got 0"),
    ],
    ids=str,
)
def test_plan(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Full().plan(**{"q_len": 3, "kv_len": 5, **options})


@pytest.mark.parametrize("what", ["batch", "heads"])
def test_parameters_for_another_batch_or_head_count(what: str) -> None:
    mask = Dense(np.ones((3, 1, 1, 1) if what == "batch" else (1, 3, 1, 1), bool))
    with pytest.raises(ValueError, match=r"mask must have .* of 2 or 1, got 3"):
        mask.to_bool(2, 2, **{what: 2})


# Crashes are not errors: what ended the process once is tried in a process of its own.
DEGENERATE = """
import numpy as np, maskattn
from maskattn.masks import *
none = np.zeros(0, int)
for shape in [(0, 2, 3, 4), (1, 0, 3, 4), (0, 0, 3, 4), (1, 2, 0, 4), (0, 2, 0, 4)]:
    x = np.ones(shape, np.float32)
    for mask in (None, Causal(), ~Causal(), np.ones((1, 1), bool)):
        assert maskattn.attention(x, x, x, mask=mask).shape == shape
        assert maskattn.attention_weights(x, x, mask=mask).shape == (*shape[:3], shape[2])
x = np.ones((0, 2, 3, 4), np.float32)
assert maskattn.attention(x, x, x, mask=Causal(), kv_lengths=none, q_offset=none).shape == x.shape
assert Causal().to_bool(3, 4, batch=0, kv_lengths=none).shape == (0, 1, 3, 4)
assert Causal().to_bool(3, 4, batch=0, q_offset=none).shape == (0, 1, 3, 4)
print("done")
"""


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_empty_axes_do_not_crash() -> None:
    done = python(DEGENERATE)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


# Instruction sets and threads


def test_set_isa() -> None:
    before, runnable = maskattn.info()["isa"], ", ".join(maskattn.runnable_isas())
    with pytest.raises(ValueError, match=f"^name must be .*got 'sse9'; choose one of {runnable}"):
        maskattn.set_isa("sse9")
    assert maskattn.info()["isa"] == before


def test_an_unknown_isa_in_the_environment_is_an_error_of_the_import() -> None:
    done = python("import maskattn", MASKATTN_ISA="sse9")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: MASKATTN_ISA must be")
    assert "got 'sse9'" in last
    for name in maskattn.runnable_isas():
        assert name in last


@pytest.mark.parametrize("name", maskattn.runnable_isas())
def test_an_isa_in_the_environment_is_used(name: str) -> None:
    done = python("import maskattn; print(maskattn.info()['isa'])", MASKATTN_ISA=name)
    assert done.stdout.strip() == name


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, ValueError, "got 0"),
        (-3, ValueError, "got -3"),
        (2.0, TypeError, "got float"),
        (None, TypeError, "got None"),
    ],
)
def test_set_num_threads(count: Any, error: type[Exception], message: str) -> None:
    before = maskattn.num_threads()
    with pytest.raises(error, match=f"^threads must be .*{message}"):
        maskattn.set_num_threads(count)
    assert maskattn.num_threads() == before


def test_unknown_names_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'attend'"):
        maskattn.attend  # noqa: B018
