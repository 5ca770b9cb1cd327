"""Random-weight Whisper checkpoints: from given log-mel features, what transformers encodes, writes and scores."""

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

PROMPT = [2, 7, 11, 5]  # start, language, task, no timestamps
SHAPES: dict[str, dict[str, Any]] = {
    "whisper": dict(d_model=48, encoder=(2, 4, 60), decoder=(2, 6, 40), num_mel_bins=80, max_source_positions=30),
    "whisper-odd": dict(d_model=42, encoder=(3, 3, 33), decoder=(1, 7, 51), num_mel_bins=13, max_source_positions=21,
                        activation_function="relu", tie_word_embeddings=False),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, seed: int) -> Any:
    settings = dict(SHAPES[name])
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in zip(("layers", "attention_heads", "ffn_dim"), settings.pop(side), strict=True)
    }
    config = transformers.WhisperConfig(
        vocab_size=VOCAB, max_target_positions=80, pad_token_id=PAD, bos_token_id=2, eos_token_id=EOS,
        decoder_start_token_id=2, suppress_tokens=None, begin_suppress_tokens=None, **sides, **settings,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    randomize(model, seed)
    with torch.no_grad():
        inputs = torch.randint(2, VOCAB, (8, NEW))
        out = model(features(model), decoder_input_ids=inputs, output_hidden_states=True)
    centre_head(model, out.decoder_hidden_states[-1])
    return model


def features(model: Any) -> Any:
    shape = (8, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def reference(model: Any, greedy: Greedy) -> list[list[int]]:
    """The generation of all models; Whisper's own in transformers adds what it knows of timestamps."""
    return greedy(model, len(PROMPT), input_features=features(model), decoder_input_ids=torch.tensor([PROMPT] * 8))


@pytest.mark.parametrize("name", SHAPES)
def test_family(name: str, tmp_path: Path) -> None:
    greedy = Greedy(begin_suppress_tokens=[3, 4, EOS])
    model, want = wandering(lambda seed: make(name, seed), lambda model: reference(model, greedy), greedy)
    ours = maskattn.load(save(model, tmp_path, begin_suppress_tokens=[3, 4, EOS]))
    sound = features(model).numpy()
    assert ours.generate_ids(sound, prompt_ids=PROMPT, max_new_tokens=NEW) == want

    targets = sequences(seed=3)
    inputs = padded([PROMPT + target[:-1] for target in targets])[0]
    with torch.no_grad():
        out = model(features(model), decoder_input_ids=inputs)
    for got, encoded in zip(ours.encode(sound, batch_size=3), out.encoder_last_hidden_state.numpy(), strict=True):
        close(got, encoded, 1e-5)
    logits = ours._forward.logits(ours._forward.decode(inputs.numpy(), ours._forward.encode(list(sound))))
    scores = ours.score_ids(sound, targets, prompt_ids=PROMPT)
    for i, target in enumerate(targets):
        places = slice(len(PROMPT) - 1, len(PROMPT) - 1 + len(target))
        close(logits[i, places], out.logits[i, places].numpy(), 1e-4)
        wanted = out.logits[i, places].log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)].numpy()
        np.testing.assert_allclose(scores[i], wanted, rtol=0, atol=1e-3)


def test_fewer_frames_than_there_are_positions(tmp_path: Path) -> None:
    """transformers wants all frames; the definition is the same for fewer."""
    model = make("whisper-odd", 0)
    ours = maskattn.load(save(model, tmp_path))
    sound = features(model)[:, :, :17]
    with torch.no_grad():
        encoder = model.model.encoder
        x = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(sound)))).permute(0, 2, 1)
        x = x + encoder.embed_positions.weight[:9]
        for layer in encoder.layers:
            x = layer(x, None)
        want = encoder.layer_norm(x).numpy()
    for got, encoded in zip(ours.encode(sound.numpy()), want, strict=True):
        close(got, encoded, 1e-5)


@pytest.mark.parametrize(
    ("sound", "error", "message"),
    [
        ([[1, 2]], TypeError, r"sources must be a float array of log-mel features \(batch, mels, frames\), got"),
        (np.zeros((1, 12, 10), np.float32), ValueError, r"sources must have shape \(batch, 13, frames\) .* 1 to 42"),
        (np.zeros((1, 13, 43), np.float32), ValueError, r"with 1 to 42 frames, got \(1, 13, 43\); take the feature"),
        (np.full((1, 13, 4), np.nan, np.float32), ValueError, "sources must be finite, got NaN"),
    ],
)
def test_bad_features(sound: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    ours = maskattn.load(save(make("whisper-odd", 0), tmp_path))
    with pytest.raises(error, match=message):
        ours.generate_ids(sound)
