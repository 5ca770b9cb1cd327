"""Random-weight checkpoints of decoder-only families: our tokens, logits and scores are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
from random_models import (  # noqa: E402
    EOS,
    NEW,
    PAD,
    VOCAB,
    Greedy,
    centre_head,
    close,
    padded,
    randomize,
    save,
    sequences,
    wandering,
)

COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}


def llama(width: int, layers: int, heads: int, kv_heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "max_position_embeddings": 128,
        **more,
    }


def gpt2(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 120, **more}


def opt(width: int, layers: int, heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": ffn,
        "max_position_embeddings": 100,
        "word_embed_proj_dim": width,
        **more,
    }


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-tied": ("GPT2", gpt2(48, 2, 4)),
    "gpt2-odd": (
        "GPT2",
        gpt2(35, 3, 5, n_inner=51, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True,
             activation_function="relu"),
    ),
    "llama-plain": ("Llama", llama(48, 2, 4, 4, 80)),
    "llama-grouped-tied": ("Llama", llama(36, 3, 6, 2, 50, tie_word_embeddings=True, head_dim=10, attention_bias=True)),
    "llama-linear": ("Llama", llama(32, 2, 4, 1, 64, rope_parameters=rope("linear", factor=3.0))),
    "llama-dynamic": (
        "Llama", llama(32, 2, 2, 2, 64, rope_parameters=rope("dynamic", factor=2.5), max_position_embeddings=40)
    ),
    "llama-yarn": (
        "Llama",
        llama(48, 2, 4, 2, 64, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    ),
    "llama3": (
        "Llama",
        llama(48, 2, 4, 2, 64, head_dim=16, mlp_bias=True,
              rope_parameters=rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                   original_max_position_embeddings=64)),
    ),
    "mistral-window": ("Mistral", llama(40, 3, 4, 2, 48, sliding_window=7)),
    "mistral-full": ("Mistral", llama(36, 2, 3, 3, 50, sliding_window=None, head_dim=14)),
    "qwen2": ("Qwen2", llama(48, 2, 6, 2, 60)),
    "qwen2-windows-tied": (
        "Qwen2",
        llama(32, 4, 4, 4, 40, use_sliding_window=True, sliding_window=5, max_window_layers=2,
              tie_word_embeddings=True),
    ),
    "qwen3": ("Qwen3", llama(48, 2, 6, 2, 60, head_dim=8)),
    "qwen3-biased-tied": (
        "Qwen3",
        llama(30, 3, 4, 1, 44, head_dim=12, attention_bias=True, tie_word_embeddings=True, use_sliding_window=True,
              sliding_window=9, max_window_layers=1),
    ),
    "gemma2": (
        "Gemma2",
        llama(32, 4, 4, 2, 48, head_dim=10, sliding_window=6, query_pre_attn_scalar=7, attn_logit_softcapping=2.0,
              final_logit_softcapping=5.0),
    ),
    "gemma2-uncapped": (
        "Gemma2",
        llama(40, 3, 2, 1, 64, head_dim=16, sliding_window=11, query_pre_attn_scalar=16, attn_logit_softcapping=None,
              final_logit_softcapping=None, tie_word_embeddings=False),
    ),
    "phi3": ("Phi3", llama(48, 2, 4, 2, 64, sliding_window=9)),
    "phi3-longrope": (
        "Phi3",
        llama(32, 3, 4, 4, 40, original_max_position_embeddings=33, max_position_embeddings=132,
              rope_parameters=rope("longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.5, 2.0, 3.0, 4.0]),
              tie_word_embeddings=True),
    ),
    "neox-parallel": ("GPTNeoX", llama(48, 2, 4, 4, 64, rope_parameters=rope("default", partial_rotary_factor=0.5))),
    "neox-sequential-tied": (
        "GPTNeoX",
        llama(40, 3, 5, 5, 52, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
              hidden_act="gelu_new"),
    ),
    "opt": ("OPT", opt(48, 2, 4, 64)),
    "opt-projected-post": (
        "OPT", opt(40, 3, 5, 52, word_embed_proj_dim=24, do_layer_norm_before=False, activation_function="gelu")
    ),
    "opt-plain-norms": ("OPT", opt(36, 2, 3, 50, layer_norm_elementwise_affine=False, enable_bias=False)),
}  # fmt: skip


#: Where the plain choice repeats itself: how the weights are drawn, and the first seed that wanders.
WEIGHTS = {
    "gemma2": {"embedding": 0.2, "norm": -1.0},
    "gemma2-uncapped": {"norm": -1.0},
    "neox-parallel": {"embedding": 0.05},
}
SEEDS = {
    "gpt2-tied": 1,
    "llama-grouped-tied": 4,
    "llama-linear": 1,
    "llama-yarn": 1,
    "llama3": 3,
    "qwen3": 1,
    "qwen3-biased-tied": 1,
    "gemma2": 2,
    "gemma2-uncapped": 2,
    "phi3": 1,
    "phi3-longrope": 1,
    "opt-projected-post": 1,
    "opt-plain-norms": 2,
}
#: Where transformers turns all sequences of a batch by the length of the longest, we compare with each one alone.
ALONE = ("llama-dynamic", "phi3-longrope")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, seed: int) -> Any:
    kind, settings = SHAPES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**COMMON, **settings})
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, kind + suffix)(config).eval()
    randomize(model, seed, **WEIGHTS.get(name, {}))
    ids, mask = padded(sequences(seed=7))
    with torch.no_grad():
        hidden = model.base_model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
    centre_head(model, hidden)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_family(name: str, tmp_path: Path) -> None:
    prompts, greedy = sequences(), Greedy()

    def write(model: Any) -> list[list[int]]:
        made: list[list[int]] = []
        for batch in [[prompt] for prompt in prompts] if name in ALONE else [prompts]:
            ids, mask = padded(batch, "left")
            made += greedy(model, ids.shape[1], input_ids=ids, attention_mask=mask)
        return made

    model, want = wandering(lambda seed: make(name, seed), write, greedy, SEEDS.get(name, 0))
    ours = maskattn.load(save(model, tmp_path))
    check_logits(model, ours, prompts)
    assert ours.generate_ids(prompts, max_new_tokens=NEW) == want
    check_scores(model, ours, prompts)


def check_logits(model: Any, ours: Any, prompts: list[list[int]]) -> None:
    for prompt in prompts[:4]:
        with torch.no_grad():
            want = model(torch.tensor([prompt])).logits[0].numpy()
        close(ours._forward.logits(ours._forward.decode(np.array([prompt])))[0], want, 1e-4)


def check_scores(model: Any, ours: Any, prompts: list[list[int]]) -> None:
    targets = sequences(seed=3)[::-1]
    got = ours.score_ids(prompts, targets)
    for prompt, target, scores in zip(prompts, targets, got, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        want = logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)].numpy()
        np.testing.assert_allclose(scores, want, rtol=0, atol=1e-3)
