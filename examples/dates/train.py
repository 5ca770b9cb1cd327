"""Trains the character-level Marian model that turns dates as people write them into ISO 8601.

The checkpoint this writes is an ordinary Hugging Face Marian one (``config.json``, ``generation_config.json``,
``model.safetensors``) beside a vocabulary with one id per character. The model reads the characters of the stripped,
lower-cased text and then ``</s>``; it writes those of the ISO date and then ``</s>``. Dates come from ``dates.py``,
which keeps one date in ten from training. The end prints the exact-match accuracy on held-out dates, style by style,
of the checkpoint as stored, by the greedy search of transformers. (Which step's weights are kept is decided on other
spellings of held-out dates.)

Needs PyTorch and transformers. The shipped model came from

    python examples/dates/train.py --out python/maskattn/data/dates --steps 10000 --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, MarianConfig, MarianMTModel
from transformers.utils.logging import disable_progress_bar

import dates

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
VOCAB = {character: index for index, character in enumerate([PAD, EOS, UNK, *dates.ALPHABET])}
IGNORED = -100  # the label that the loss of transformers passes over


def encode(text: str) -> list[int]:
    """The ids of the stripped, lower-cased text's characters, then ``</s>``."""
    return [VOCAB.get(character, VOCAB[UNK]) for character in text.strip().lower()] + [VOCAB[EOS]]


def decode(ids: list[int]) -> str:
    """The characters of the ids up to ``</s>``."""
    characters = list(VOCAB)
    return "".join(characters[i] for i in itertools.takewhile(lambda i: i != VOCAB[EOS], ids) if i != VOCAB[PAD])


def padded(rows: list[list[int]], fill: int) -> Tensor:
    """The rows as one tensor ``[rows, longest]``, shorter ones filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def batches(seed: int, batch_size: int, pool: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end: input ids ``[batch, source]`` and labels ``[batch, target]``.

    Pairs are drawn for ``pool`` batches at a time and sorted by length, so that a batch has little padding.
    """
    pairs = dates.training_pairs(seed)
    order = torch.Generator().manual_seed(seed)
    while True:
        rows = [(encode(text), encode(iso)) for text, iso in itertools.islice(pairs, pool * batch_size)]
        rows.sort(key=lambda row: len(row[0]))
        for start in torch.randperm(pool, generator=order).tolist():
            sources, targets = zip(*rows[start * batch_size : (start + 1) * batch_size], strict=True)
            yield padded(list(sources), VOCAB[PAD]), padded(list(targets), IGNORED)


def new_model(options: argparse.Namespace) -> MarianMTModel:
    """A Marian model of the chosen size with random weights."""
    config = MarianConfig(
        vocab_size=len(VOCAB),
        d_model=options.width,
        encoder_layers=options.encoder_layers,
        decoder_layers=options.decoder_layers,
        encoder_attention_heads=options.heads,
        decoder_attention_heads=options.heads,
        encoder_ffn_dim=options.inner_width,
        decoder_ffn_dim=options.inner_width,
        activation_function="relu",
        dropout=0.0,
        # With embeddings scaled by the square root of the width, this gives them the size of the position vectors.
        scale_embedding=True,
        init_std=options.width**-0.5,
        max_position_embeddings=128,
        pad_token_id=VOCAB[PAD],
        eos_token_id=VOCAB[EOS],
        decoder_start_token_id=VOCAB[PAD],
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(
        max_length=16,  # the start token, ten characters and </s> take twelve
        num_beams=1,
        do_sample=False,
        pad_token_id=VOCAB[PAD],
        eos_token_id=VOCAB[EOS],
        decoder_start_token_id=VOCAB[PAD],
    )
    return model


def save(model: MarianMTModel, out: Path) -> None:
    """Write the checkpoint and the vocabulary."""
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # save_pretrained lets only the owner read it
    (out / "vocab.json").write_text(json.dumps(VOCAB, indent=1) + "\n", encoding="utf-8")
    tokenizer = {
        "tokenizer_class": "CharacterTokenizer",
        "do_lower_case": True,
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
        "model_max_length": model.config.max_position_embeddings,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def wrong_answers(model: MarianMTModel, pairs: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """``(text, iso, answer)`` for every pair that greedy search gets wrong."""
    model.eval()
    wrong = []
    for start in range(0, len(pairs), 500):
        part = pairs[start : start + 500]
        ids = padded([encode(text) for text, _ in part], VOCAB[PAD])
        mask = (ids != VOCAB[PAD]).long()
        outputs = model.generate(input_ids=ids, attention_mask=mask)  # greedy, as generation_config.json says
        answers = [decode(row[1:]) for row in outputs.tolist()]  # the first id is the start token
        wrong += [(text, iso, answer) for (text, iso), answer in zip(part, answers, strict=True) if answer != iso]
    model.train()
    return wrong


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Warm-up in a straight line, then half a cosine down to zero."""
    if step < options.warm_up:
        return options.rate * (step + 1) / options.warm_up
    done = (step - options.warm_up) / max(1, options.steps - options.warm_up)
    return options.rate * 0.5 * (1 + math.cos(math.pi * done))


def train(model: MarianMTModel, options: argparse.Namespace) -> None:
    """Adam on the cross-entropy of the next character; saves the model whenever a check finds it the best yet."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    checked = dates.held_out(options.seed + 1, 1000)
    fewest, began, total = len(checked) // 20, time.monotonic(), 0.0
    for step, (ids, labels) in enumerate(itertools.islice(batches(options.seed, options.batch_size), options.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        mask = (ids != VOCAB[PAD]).long()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % options.check_every == 0 or step + 1 == options.steps:
            wrong = wrong_answers(model, checked)
            mean, total = total / options.check_every, 0.0
            result = f"{len(wrong)} of {len(checked)} wrong"
            print(f"step {step + 1}: loss {mean:.5f}, {result}, {time.monotonic() - began:.0f} s", flush=True)
            if len(wrong) <= fewest:
                fewest = len(wrong)
                save(model, options.out)


def report(out: Path, seed: int, count: int) -> None:
    """Print the accuracy of the stored checkpoint on held-out dates, style by style and over all."""
    model = MarianMTModel.from_pretrained(out)
    total = 0
    for style in dates.STYLES:
        wrong = wrong_answers(model, dates.held_out(seed, count, style))
        total += len(wrong)
        print(f"{style:22} {1 - len(wrong) / count:8.2%}", *wrong[:3])
    print(f"{'all':22} {1 - total / (count * len(dates.STYLES)):8.2%} of {count * len(dates.STYLES)}")
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {model.dtype}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the model that turns written dates into ISO 8601.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write the checkpoint to")
    parser.add_argument("--steps", type=int, default=10000, help="0 only reports on what --out holds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="the highest learning rate")
    parser.add_argument("--warm-up", type=int, default=400, help="steps until the highest learning rate")
    parser.add_argument("--check-every", type=int, default=500, help="steps between checks on held-out dates")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--inner-width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--encoder-layers", type=int, default=3)
    parser.add_argument("--decoder-layers", type=int, default=2)
    parser.add_argument("--report-count", type=int, default=1000, help="held-out pairs of each style in the report")
    options = parser.parse_args()

    disable_progress_bar()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    model = new_model(options)
    if options.steps:
        train(model, options)
    report(options.out, options.seed + 2, options.report_count)


if __name__ == "__main__":
    main()
