"""[E; o]: an encoder's output in front of a decoder-only model's tokens, against transformers with that mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
from random_models import CLEAR, VOCAB, centre_head, randomize, save, sequences  # noqa: E402

STEPS, WIDTH = 24, 32
PREFIXES = (3, 0, 7, 1, 12, 5, 2, 9)
COMMON = dict(
    vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=None, head_dim=8,
)  # fmt: skip
MODELS: dict[str, tuple[str, Any]] = {
    "llama": ("LlamaForCausalLM", lambda: transformers.LlamaConfig(**COMMON)),
    "gpt2": (
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, eos_token_id=None),
    ),
    "mistral-window": ("MistralForCausalLM", lambda: transformers.MistralConfig(**COMMON, sliding_window=4)),
    "gemma2": ("Gemma2ForCausalLM", lambda: transformers.Gemma2Config(**COMMON, sliding_window=4)),
}


def visible(n: int, length: int, window: int | None) -> Any:
    """(length, length): the prefix from everywhere; of the others those not after the query, and in its window."""
    query, key = np.ogrid[:length, :length]
    seen = (key <= query) & (key > query - (window or length))
    return torch.from_numpy(seen | (key < n))


@torch.no_grad()
def logits(model: Any, prefix: np.ndarray, tokens: list[int]) -> Any:
    embedded = torch.cat([torch.from_numpy(prefix)[None], model.get_input_embeddings()(torch.tensor([tokens]))], dim=1)
    n, length = len(prefix), embedded.shape[1]
    window = getattr(model.config, "sliding_window", None)
    masks = {
        kind: torch.where(visible(n, length, size), 0.0, float("-inf"))[None, None]
        for kind, size in (("full_attention", None), ("sliding_attention", window))
    }
    mask = masks if hasattr(model.config, "layer_types") and model.config.layer_types else masks["sliding_attention"]
    return model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits[0]


def greedy(model: Any, prefix: np.ndarray, prompt: list[int]) -> tuple[list[int], float]:
    tokens, lead = list(prompt), np.inf
    for _ in range(STEPS):
        best = logits(model, prefix, tokens)[-1].topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :], lead


@pytest.mark.parametrize("name", MODELS)
def test_prefix_embeddings(name: str, tmp_path: Path) -> None:
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config()).eval()
    randomize(model, 3, norm=-1.0 if name == "gemma2" else 0.0)
    hidden = model.base_model(torch.tensor([list(range(2, VOCAB))[:100]])).last_hidden_state.detach()
    centre_head(model, hidden)
    rng = np.random.default_rng(0)
    prefixes = [rng.standard_normal((n, WIDTH), dtype=np.float32) for n in PREFIXES]
    prompts = sequences()
    want, leads = zip(*[greedy(model, *pair) for pair in zip(prefixes, prompts, strict=True)], strict=True)
    assert min(leads) > CLEAR
    ours = maskattn.load(save(model, tmp_path))
    options: dict[str, Any] = {"max_new_tokens": STEPS, "prefix_embeddings": prefixes}
    assert ours.generate_ids(prompts, **options) == list(want)
    assert ours.generate_ids(prompts, max_new_tokens=STEPS) != list(want), "the prefixes must matter"
    for i, scores in enumerate(ours.score_ids(prompts, list(want), prefix_embeddings=prefixes)):
        rows = logits(model, prefixes[i], prompts[i] + want[i][:-1])[-STEPS:].log_softmax(-1)
        wanted = rows[torch.arange(STEPS), torch.tensor(want[i])].numpy()
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-3)
