"""Views of cross-attention are what transformers gives with ``output_attentions=True``, in generation and in a pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
from maskattn.decoder.views import cross_attention  # noqa: E402
from random_models import EOS, PAD, VOCAB, padded, randomize, save, sequences  # noqa: E402

START, NEW = 2, 12
COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": START}
SIDES = {
    f"{side}_{name}": value
    for side, values in (("encoder", (2, 3, 40)), ("decoder", (3, 6, 50)))
    for name, value in zip(("layers", "attention_heads", "ffn_dim"), values, strict=True)
}
CONFIGS = {
    "Marian": SIDES | {"d_model": 42, "max_position_embeddings": 80, "forced_eos_token_id": None},
    "T5": {"d_model": 40, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 6, "d_kv": 9, "d_ff": 50},
    "Whisper": SIDES | {"d_model": 42, "num_mel_bins": 10, "max_source_positions": 25, "max_target_positions": 60}
    | {"bos_token_id": START, "suppress_tokens": None, "begin_suppress_tokens": None},
}  # fmt: skip
MODELS = {"Marian": "MarianMTModel", "T5": "T5ForConditionalGeneration", "Whisper": "WhisperForConditionalGeneration"}
HEADS = [(2, 5), (0, 1), (-1, 0), (1, 3)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=MODELS)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """Theirs, and ours of the same weights."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**COMMON, **CONFIGS[request.param])
    theirs = getattr(transformers, MODELS[request.param])(config).eval()
    randomize(theirs, seed=1)
    theirs.set_attn_implementation("eager")
    return theirs, maskattn.load(save(theirs, tmp_path))


def inputs(theirs: Any) -> tuple[dict[str, Any], Any]:
    """Ragged sources, or sound, for theirs and for ours."""
    if theirs.config.model_type == "whisper":
        sound = np.random.default_rng(0).standard_normal((8, 10, 50), dtype=np.float32)
        return {"input_features": torch.from_numpy(sound)}, sound
    ids, mask = padded(sequences())
    return {"input_ids": ids, "attention_mask": mask}, sequences()


@torch.no_grad()
def test_the_steps_of_a_generation(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    given, sources = inputs(theirs)
    out = transformers.GenerationMixin.generate(
        theirs, **given, decoder_input_ids=torch.tensor([[START, 7, 9]] * 8), num_beams=1, do_sample=False,
        max_new_tokens=NEW, pad_token_id=PAD, output_attentions=True, return_dict_in_generate=True,
    )  # fmt: skip
    rows = out.sequences[:, 3:].tolist()
    produced = [np.array(row[: row.index(EOS) + 1 if EOS in row else NEW]) for row in rows]
    assert max(map(len, produced)) == NEW
    memory = ours._forward.encode([np.asarray(source) for source in sources])
    views = cross_attention(ours._forward, [np.array([START, 7, 9])] * 8, produced, memory)
    for i, view in enumerate(views):
        source_len = view.shape[-1]
        for step in range(len(produced[i])):
            want = torch.stack([layer[i, :, -1] for layer in out.cross_attentions[step]]).numpy()
            np.testing.assert_allclose(view[:, :, step], want[..., :source_len], rtol=0, atol=1e-5)
            assert not want[..., source_len:].any()


@torch.no_grad()
def test_one_pass_over_a_target(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    given, sources = inputs(theirs)
    prompt, target = [START, 11], [5, 9, 8, 60, EOS]
    one = {name: value[2:3] for name, value in given.items()}
    one = {name: value[:, : len(sources[2])] if value.ndim == 2 else value for name, value in one.items()}
    out = theirs(**one, decoder_input_ids=torch.tensor([[*prompt, *target[:-1]]]), output_attentions=True)
    want = torch.cat(out.cross_attentions).numpy()[:, :, 1:]
    whole = ours.cross_attention(sources[2], target, prompt_ids=prompt)
    assert whole.shape == want.shape
    np.testing.assert_allclose(whole, want, rtol=0, atol=1e-5)
    some = ours.cross_attention(sources[2], target, prompt_ids=prompt, heads=HEADS)
    np.testing.assert_allclose(some, np.stack([want[pair] for pair in HEADS]), rtol=0, atol=1e-5)
