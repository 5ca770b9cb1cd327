"""Random-weight checkpoints of encoder-decoder families: our tokens, logits and scores are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
from maskattn.decoder.model import pad  # noqa: E402
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

COMMON = {
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}


def bart(width: int, encoder: tuple[int, ...], decoder: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Sides: (layers, heads, ffn)."""
    sides = {
        f"{side}_{name}": value
        for side, values in (("encoder", encoder), ("decoder", decoder))
        for name, value in zip(("layers", "attention_heads", "ffn_dim"), values, strict=True)
    }
    return {"d_model": width, "max_position_embeddings": 80, **sides, **more}


def t5(width: int, layers: tuple[int, int], heads: int, head_dim: int, ffn: int, **more: Any) -> dict[str, Any]:
    return {
        "d_model": width,
        "num_layers": layers[0],
        "num_decoder_layers": layers[1],
        "num_heads": heads,
        "d_kv": head_dim,
        "d_ff": ffn,
        **more,
    }


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("Bart", bart(48, (2, 4, 60), (2, 6, 40))),
    "bart-scaled-odd": (
        "Bart", bart(55, (1, 5, 33), (2, 11, 91), scale_embedding=True, activation_function="silu",
                     tie_word_embeddings=False)
    ),
    "mbart": ("MBart", bart(40, (2, 4, 48), (2, 2, 64), scale_embedding=True)),
    "mbart-untied": ("MBart", bart(36, (3, 3, 40), (1, 6, 50), tie_word_embeddings=False)),
    "pegasus": ("Pegasus", bart(48, (2, 4, 60), (2, 6, 40), scale_embedding=True)),
    "pegasus-odd": ("Pegasus", bart(35, (1, 5, 33), (3, 7, 51), activation_function="gelu",
                                    tie_word_embeddings=False)),
    "m2m": ("M2M100", bart(48, (2, 4, 60), (2, 6, 40))),
    "m2m-odd": (
        "M2M100", bart(35, (1, 5, 33), (3, 7, 51), scale_embedding=False, activation_function="gelu",
                       tie_word_embeddings=False)
    ),
    "t5": ("T5", t5(60, (3, 2), 6, 12, 100)),
    "t5-gated-unscaled": (
        "T5", t5(36, (3, 1), 6, 5, 50, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                 relative_attention_num_buckets=8, relative_attention_max_distance=20)
    ),
    "mt5": ("MT5", t5(40, (2, 2), 4, 10, 48)),
    "mt5-silu": ("MT5", t5(50, (3, 2), 4, 9, 61, feed_forward_proj="gated-silu", relative_attention_num_buckets=10)),
}  # fmt: skip
#: How the weights are drawn where the plain choice repeats itself, and the first seed that wanders.
WEIGHTS = {
    "bart-scaled-odd": {"embedding": 0.05},
    "mbart": {"embedding": 0.2},
    "pegasus": {"embedding": 0.2, "maps": 1.5},
    "m2m": {"maps": 2.5},
    "t5": {"maps": 1.5},
    "t5-gated-unscaled": {"embedding": 0.2, "maps": 1.5},
    "mt5": {"maps": 1.5},
    "mt5-silu": {"embedding": 0.7},
}
SEEDS = {
    "mbart": 2,
    "pegasus": 2,
    "m2m": 2,
    "m2m-odd": 4,
    "pegasus-odd": 8,
    "t5": 4,
    "t5-gated-unscaled": 3,
    "mt5": 2,
    "mt5-silu": 7,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, seed: int) -> Any:
    kind, settings = SHAPES[name]
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(
        getattr(transformers, f"{kind}Config")(**{**COMMON, **settings})
    ).eval()
    randomize(model, seed, **WEIGHTS.get(name, {}))
    ids, mask = padded(sequences())
    with torch.no_grad():
        inputs = torch.randint(2, VOCAB, (len(ids), NEW))
        out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, output_hidden_states=True)
        hidden = out.decoder_hidden_states[-1]
    centre_head(model, hidden)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_family(name: str, tmp_path: Path) -> None:
    # The padding token is out: where it stands among decoder inputs, M2M-100's positions in transformers stop counting.
    sources, greedy = sequences(), Greedy(bad_words_ids=[[PAD]])
    ids, mask = padded(sources)
    model, want = wandering(
        lambda seed: make(name, seed),
        lambda model: greedy(model, 1, input_ids=ids, attention_mask=mask),
        greedy,
        SEEDS.get(name, 0),
    )
    ours = maskattn.load(save(model, tmp_path, bad_words_ids=[[PAD]]))
    check_logits(model, ours, sources)
    assert ours.generate_ids(sources, max_new_tokens=NEW) == want
    check_scores(model, ours, sources)


@torch.no_grad()
def check_logits(model: Any, ours: Any, sources: list[list[int]]) -> None:
    """Of ragged sources and ragged targets; and the encoder's output."""
    targets = sequences(seed=5)[::-1]
    ids, mask = padded(sources)
    inputs = padded([[2, *target[:-1]] for target in targets])[0]
    out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs)
    memory = ours._forward.encode([np.array(source) for source in sources])
    tokens, lengths = pad([np.array([2, *target[:-1]]) for target in targets])
    got = ours._forward.logits(ours._forward.decode(tokens, memory))
    for i, length in enumerate(lengths):
        close(got[i, :length], out.logits[i, :length].numpy(), 1e-4)
        encoded = out.encoder_last_hidden_state[i, : len(sources[i])].numpy()
        close(ours.encode(sources[i : i + 1])[0], encoded, 1e-5)


@torch.no_grad()
def check_scores(model: Any, ours: Any, sources: list[list[int]]) -> None:
    targets = sequences(seed=3)[::-1]
    ids, mask = padded(sources)
    inputs = padded([[2, *target[:-1]] for target in targets])[0]
    want = model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs).logits.log_softmax(-1).numpy()
    for i, scores in enumerate(ours.score_ids(sources, targets)):
        wanted = want[i, np.arange(len(targets[i])), targets[i]]
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-3)
