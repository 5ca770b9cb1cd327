"""Make a tiny Whisper that knows the digits, in English and in German, spoken by espeak-ng; trained here, in a minute.

    python examples/tiny_whisper.py some/directory

It hears two seconds at a time, writes digits with timestamps or without, and tells the two languages apart. Needs
PyTorch, transformers and the program espeak-ng (``apt install espeak-ng``); what it writes is a checkpoint like any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers

from maskattn.speech import MelSettings, log_mel, read_audio

RATE, SECONDS = 16000, 2
SETTINGS = MelSettings(chunk_length=SECONDS)
WORDS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "de": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
}
VOICES = {"en": ["en-us", "en-gb"], "de": ["de"]}
VARIANTS = ["m1", "m2", "m3", "m4", "m5", "f1", "f2", "f3", "f4"]
VOCAB = {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", *"0123456789"])}
END, START, TRANSCRIBE, TRANSLATE, PREVIOUS, SILENCE, NO_TIMESTAMPS = 1, 13, 16, 17, 18, 19, 20
LANGUAGES = {"en": 14, "de": 15}
FIRST, STEP = NO_TIMESTAMPS + 1, 0.02  # the timestamp 0.00, and seconds to the next
TIMES = round(SECONDS / STEP) + 1
IGNORED = -100  # the label that the loss passes over


def speak(text: str, voice: str, speed: int = 150, pitch: int = 50) -> np.ndarray:
    """What espeak-ng says, (samples,) at 16 kHz, without the silence around it."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", file.name, text]
        subprocess.run(command, check=True, timeout=60)
        sound = read_audio(file.name, RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1]


def clips(rng: Random, count: int) -> dict[str, list[list[np.ndarray]]]:
    """By language and digit, spoken by ``count`` voices."""
    speakers = {
        language: [
            (f"{rng.choice(VOICES[language])}+{rng.choice(VARIANTS)}",
             rng.randint(120, 190), rng.randint(25, 75))
            for _ in range(count)
        ]
        for language in WORDS
    }  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        said = {
            language: [[pool.submit(speak, word, *speaker) for speaker in speakers[language]] for word in words]
            for language, words in WORDS.items()
        }
        return {language: [[one.result() for one in digit] for digit in digits] for language, digits in said.items()}


class Example:
    """Two seconds of somebody who says digits, and what is to be written."""

    def __init__(self, rng: Random, spoken: dict[str, list[list[np.ndarray]]]) -> None:
        self.language = rng.choice(list(spoken))
        timestamps, speaker = rng.random() < 0.6, rng.randrange(len(spoken[self.language][0]))
        sound = np.zeros(SECONDS * RATE, np.float32)
        tokens, position = list[int](), rng.uniform(0, 0.3)
        if timestamps and rng.random() < 0.5:  # the end of a digit that the window before has written
            tail = rng.choice(spoken[self.language])[speaker][-rng.randint(1, RATE // 8) :]
            sound[: len(tail)] = tail
            position += len(tail) / RATE
        # With timestamps the recording may go on behind the window, as in the middle of a long one.
        most = 99 if timestamps and rng.random() < 0.7 else rng.randint(1, 4)
        for _ in range(most):
            digit = rng.randrange(10)
            clip, start = spoken[self.language][digit][speaker], int(position * RATE)
            end = start + len(clip)
            if start >= len(sound) or (end > len(sound) and not timestamps):
                break
            sound[start:end] += clip[: len(sound) - start]
            if end > len(sound):  # only its beginning is heard: that is said, and it is left to the next window
                tokens += [time(start)]
                break
            tokens += [time(start), VOCAB[str(digit)], time(end)] if timestamps else [VOCAB[str(digit)]]
            position = end / RATE + rng.uniform(0.02, 0.6)
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(sound), np.float32)
        self.features = log_mel(rng.uniform(0.3, 1) * sound + 10 ** rng.uniform(-5, -2.5) * noise, SETTINGS)
        if timestamps and rng.random() < 0.4:  # the end of a long recording: features are padded with zeros
            self.features[:, int(position / STEP) * 2 :] = 0
        self.tokens = [
            START,
            LANGUAGES[self.language],
            TRANSCRIBE,
            *([] if timestamps else [NO_TIMESTAMPS]),
            *tokens,
            END,
        ]


def time(sample: int) -> int:
    """The timestamp of a sample."""
    return FIRST + round(sample / RATE / STEP)


def batches(rng: Random, spoken: dict[str, list[list[np.ndarray]]], size: int) -> Iterator[dict[str, Any]]:
    while True:
        examples = [Example(rng, spoken) for _ in range(size)]
        longest = max(len(example.tokens) for example in examples)
        tokens = torch.tensor([example.tokens + [IGNORED] * (longest - len(example.tokens)) for example in examples])
        yield {
            "input_features": torch.from_numpy(np.stack([example.features for example in examples])),
            "decoder_input_ids": tokens[:, :-1].clamp(min=0),
            "labels": tokens[:, 1:].contiguous(),
        }


def whisper() -> Any:
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
             (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))}  # fmt: skip
    config = transformers.WhisperConfig(
        vocab_size=FIRST + TIMES, d_model=64, **sizes, max_source_positions=50 * SECONDS, max_target_positions=40,
        dropout=0.0, init_std=0.1, pad_token_id=0, bos_token_id=END, eos_token_id=END, decoder_start_token_id=START,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    for name, value in {
        "lang_to_id": {f"<|{code}|>": i for code, i in LANGUAGES.items()}, "is_multilingual": True,
        "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE}, "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": PREVIOUS, "suppress_tokens": [0, 2, *range(START, NO_TIMESTAMPS)],
        "_from_model_config": False,  # or transformers makes it anew when it loads the checkpoint
    }.items():  # fmt: skip
        setattr(model.generation_config, name, value)
    return model


def fit(model: Any, data: Iterator[dict[str, Any]], steps: int, rate: float = 4e-3) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        loss = model(**next(data)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def save(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    transformers.WhisperFeatureExtractor(chunk_length=SECONDS).save_pretrained(directory)
    (directory / "vocab.json").write_text(json.dumps(VOCAB))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CharacterTokenizer"}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    rng = Random(0)
    save(fit(whisper(), batches(rng, clips(rng, 30), 20), steps=800), options.directory)


if __name__ == "__main__":
    main()
