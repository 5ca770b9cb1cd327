"""Random-weight checkpoints of encoders: hidden states, pooled vectors and class scores are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
from random_models import PAD, VOCAB, close, padded, randomize, save, sequences  # noqa: E402


def bert(width: int, layers: int, heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "max_position_embeddings": 40,
        **more,
    }


def distilbert(width: int, layers: int, heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": ffn}
    return {**sizes, "max_position_embeddings": 40, **more}


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", bert(48, 2, 4, 60)),
    "bert-odd": ("Bert", bert(35, 3, 5, 33, hidden_act="relu", type_vocab_size=3, layer_norm_eps=1e-6)),
    "roberta": ("Roberta", bert(48, 2, 4, 60, type_vocab_size=1)),
    "roberta-odd": ("Roberta", bert(35, 3, 7, 33, hidden_act="gelu_new", pad_token_id=3)),
    "xlm-roberta": ("XLMRoberta", bert(40, 2, 2, 61, type_vocab_size=1)),
    "xlm-roberta-odd": ("XLMRoberta", bert(36, 1, 6, 50, pad_token_id=1)),
    "distilbert": ("DistilBert", distilbert(48, 2, 4, 60)),
    "distilbert-odd": ("DistilBert", distilbert(35, 3, 5, 33, activation="relu", sinusoidal_pos_embds=True)),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, head: str, **settings: Any) -> Any:
    kind, sizes = SHAPES[name]
    config = getattr(transformers, f"{kind}Config")(**{"vocab_size": VOCAB, "pad_token_id": PAD, **sizes, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    randomize(model, 1)
    return model


@torch.no_grad()
def run(model: Any, sources: list[list[int]]) -> Any:
    ids, mask = padded(sources)
    # Padding is what the config calls so: RoBERTa's positions begin behind it.
    return model(ids.masked_fill(mask == 0, model.config.pad_token_id), attention_mask=mask)


@pytest.mark.parametrize("name", SHAPES)
def test_embeddings(name: str, tmp_path: Path) -> None:
    model, sources = make(name, "Model"), sequences(low=5)
    ours = maskattn.load(save(model, tmp_path))
    out = run(model, sources)
    for i, hidden in enumerate(ours.encode(sources, batch_size=3)):
        close(hidden, out.last_hidden_state[i, : len(sources[i])].numpy(), 1e-5)
    if "pooler_output" in out:
        close(ours.pool(sources), out.pooler_output.numpy(), 1e-5)
    else:
        with pytest.raises(ValueError, match="pool must be asked of a checkpoint with a pooler, got none; average"):
            ours.pool(sources)


@pytest.mark.parametrize("name", SHAPES)
def test_sequence_classification(name: str, tmp_path: Path) -> None:
    model, sources = make(name, "ForSequenceClassification", num_labels=5), sequences(low=5)
    ours = maskattn.load(save(model, tmp_path))
    want = run(model, sources).logits.numpy()
    assert want.std(axis=0).max() > 0.05, "the sources must matter"
    close(np.stack(ours.classify(sources, batch_size=3)), want, 1e-4)
    assert ours.labels == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4"]


@pytest.mark.parametrize("name", SHAPES)
def test_token_classification(name: str, tmp_path: Path) -> None:
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    model, sources = make(name, "ForTokenClassification", id2label=names), sequences(low=5)
    ours = maskattn.load(save(model, tmp_path))
    want = run(model, sources).logits.numpy()
    for i, scores in enumerate(ours.classify(sources)):
        close(scores, want[i, : len(sources[i])], 1e-4)
    assert ours.labels == list(names.values())
