"""What a random-weight Whisper writes, as text: by its tokenizer's files, as transformers decodes the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

import maskattn  # noqa: E402
from random_models import centre_head, randomize  # noqa: E402

CODES, SECONDS = ("en", "de"), 1
CORPUS = ["We hear what is said, again and again.", "Wir hören, was gesagt wird: immer wieder, früh und spät."] * 4
NAMES = [
    "<|startoftranscript|>", *(f"<|{code}|>" for code in CODES), "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip


def make_tokenizer(path: Path) -> Any:
    """Byte-level BPE, with special tokens and timestamps in the order of Whisper's own."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(CORPUS, vocab_size=320, min_frequency=2, show_progress=False)
    path.mkdir()
    bpe.save_model(str(path))
    tokenizer = transformers.WhisperTokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
    tokenizer.add_tokens([tokenizers.AddedToken(name, special=True) for name in NAMES], special_tokens=True)
    tokenizer.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(50 * SECONDS + 1)])
    return tokenizer


def make_model(tokenizer: Any) -> Any:
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ["<|endoftext|>", *NAMES]}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=48, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=60, decoder_ffn_dim=40, max_source_positions=50 * SECONDS,
        max_target_positions=60, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    randomize(model, 3)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 80, 100), dtype=np.float32))
    with torch.no_grad():
        inputs = torch.randint(2, len(tokenizer), (8, 40), generator=torch.Generator().manual_seed(0))
        out = model(noise, decoder_input_ids=inputs, output_hidden_states=True)
    centre_head(model, out.decoder_hidden_states[-1])
    for name, value in {
        "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in CODES}, "is_multilingual": True,
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")},
        "no_timestamps_token_id": ids["<|notimestamps|>"], "prev_sot_token_id": ids["<|startofprev|>"],
        "max_length": 60, "_from_model_config": False,
    }.items():  # fmt: skip
        setattr(model.generation_config, name, value)
    return model


def test_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "bpe")
    processor = transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(chunk_length=SECONDS), tokenizer)
    model = make_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "preprocessor_config.json").exists()  # it is part of processor_config.json
    ours = maskattn.load(tmp_path / "model")
    rng = np.random.default_rng(0)
    sounds = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (9000, 40000, 16000)]
    results = ours.transcribe(sounds, return_timestamps=True)
    assert sum(len(result.text or "") for result in results) > 30
    for result, sound in zip(results, sounds, strict=True):
        features = processor(
            sound, sampling_rate=16000, truncation=False, return_tensors="pt",
            padding="longest" if len(sound) > 16000 else "max_length",
        ).input_features  # fmt: skip
        ids = model.generate(features, return_timestamps=True, task="transcribe")[0].tolist()
        assert list(result.tokens) == ids
        assert result.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        for segment in result.segments:
            assert segment.text == tokenizer.decode(list(segment.tokens), skip_special_tokens=True).strip()
