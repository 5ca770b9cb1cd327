"""GGUF files: our tokens and scores are those of transformers with the numbers that the gguf package finds in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

import gguf_models  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
import maskattn  # noqa: E402
from random_models import EOS, VOCAB, padded, randomize, sequences  # noqa: E402

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "head_dim": 16}
SIZES |= {"max_position_embeddings": 128, "num_key_value_heads": 2, "rope_theta": 5000.0}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 256}
COMMON = {"vocab_size": VOCAB, "eos_token_id": EOS, "pad_token_id": 0, "bos_token_id": 2}
NEW = 24


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPT2"])
def test_the_same_file(family: str, kind: str, tmp_path: Path) -> None:
    settings = {**COMMON, **(GPT2 if family == "GPT2" else SIZES)}
    config = getattr(transformers, f"{family}Config")(**settings)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomize(theirs, seed=3)
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in theirs.state_dict().items()}
    if family == "GPT2":
        del tensors["lm_head.weight"]  # tied
    stored = gguf_models.write(tmp_path / "model.gguf", {"model_type": config.model_type, **settings}, tensors, kind)
    theirs.load_state_dict({name: torch.tensor(tensor) for name, tensor in stored.items()}, strict=family != "GPT2")
    ours = maskattn.load(tmp_path / "model.gguf", dtype="float32")
    prompts = sequences()
    ids, mask = padded(prompts, "left")
    with torch.no_grad():
        want = theirs.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=EOS
        )
    tokens: list[list[int]] = []
    for row in want[:, ids.shape[1] :].tolist():
        tokens.append(row[: row.index(EOS) + 1] if EOS in row else row)
    assert ours.generate_ids(prompts, max_new_tokens=NEW) == tokens
    targets = [[5, 6, 7, 8]] * len(prompts)
    for prompt, scores in zip(prompts, ours.score_ids(prompts, targets), strict=True):
        np.testing.assert_allclose(scores, log_probabilities(theirs, prompt, targets[0]), atol=2e-4)


def log_probabilities(model: Any, prompt: list[int], target: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    scores: np.ndarray = torch.log_softmax(logits, -1)[range(len(target)), target].numpy()
    return scores
