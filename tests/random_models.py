"""Checkpoints with random weights whose greedy output wanders, made by transformers; and what it says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCAB, PAD, EOS, NEW = 199, 0, 1, 64
LENGTHS = (1, 5, 17, 30, 2, 9, 24, 3)
CLEAR = 1e-4  # A lead that rounding can't turn round: our logits differ from those of transformers by some 1e-5.
WANDERS = 20


def sequences(seed: int = 0, low: int = 2, vocab: int = VOCAB) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(low, vocab, n).tolist() for n in LENGTHS]


def padded(sequences: Sequence[Sequence[int]], side: str = "right") -> tuple[Any, Any]:
    """Token ids (batch, longest), filled with PAD, and 1 where they are none."""
    longest = max(map(len, sequences))
    ids, mask = torch.full((len(sequences), longest), PAD), torch.zeros((len(sequences), longest), dtype=torch.long)
    for i, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if side == "left" else slice(len(sequence))
        ids[i, place], mask[i, place] = torch.tensor(sequence), 1
    return ids, mask


@torch.no_grad()
def randomize(model: Any, seed: int, embedding: float = 0.5, norm: float = 0.0, maps: float = 1.0) -> None:
    """Weights of which every one matters, and under which the scores depend on the past.

    ``embedding``: their spread; small, so that a tied head does not like the token it has just read best. ``norm``: the
    mean of the weights of norms, which are of both signs for the same reason. ``maps``: large for wilder scores.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # sinusoids, which are what they are
            continue
        spread = maps * parameter.shape[-1] ** -0.5
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.normal_(norm, generator=generator)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.1, generator=generator)
        elif "position" in name or "wpe" in name:
            parameter.normal_(0, 1, generator=generator)
        elif "embed" in name or "shared" in name or "wte" in name or "relative" in name:
            parameter.normal_(0, embedding, generator=generator)
        else:
            parameter.normal_(0, spread, generator=generator)


def centre_head(model: Any, hidden: Any) -> None:
    """What all positions have in common would make one token win everywhere, and so would a longer row."""
    common = hidden.reshape(-1, hidden.shape[-1]).mean(0)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight.sub_(torch.outer(weight @ common, common) / common.square().sum())
        lengths = weight.norm(dim=1, keepdim=True)
        weight.mul_(lengths.mean() / lengths)


def wandering(
    make: Callable[[int], Any], write: Callable[[Any], list[list[int]]], greedy: Greedy, first: int = 0
) -> tuple[Any, list[list[int]]]:
    """The first model from seed ``first`` on whose tokens vary and are no near ties, and what it writes."""
    best = 0.0
    for seed in range(first, first + 30):
        model, greedy.lead = make(seed), np.inf
        wrote = write(model)
        distinct = float(np.mean([len(set(ids)) for ids in wrote]))
        best = max(best, distinct)
        if distinct >= WANDERS and greedy.lead > CLEAR:
            assert len({tuple(ids) for ids in wrote}) >= 6, "the inputs must matter"
            return model, wrote
    raise AssertionError(f"no seed under which the output wanders: {best} distinct tokens at most")


class Greedy:
    """transformers' greedy tokens; ``lead``: by how little a chosen one has led so far."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {"num_beams": 1, "do_sample": False, "max_new_tokens": NEW, "pad_token_id": PAD, **settings}
        self.lead = np.inf

    @torch.no_grad()
    def __call__(self, model: Any, start: int, **inputs: Any) -> list[list[int]]:
        out = transformers.GenerationMixin.generate(
            model, **inputs, **self.settings, output_scores=True, return_dict_in_generate=True
        )
        rows = out.sequences[:, start:].tolist()
        lengths = [row.index(EOS) + 1 if EOS in row else len(row) for row in rows]
        best = [scores.topk(2).values for scores in out.scores]
        lead = min(float(best[t][i, 0] - best[t][i, 1]) for i, n in enumerate(lengths) for t in range(n))
        self.lead = min(self.lead, lead)
        return [row[:n] for row, n in zip(rows, lengths, strict=True)]


def save(model: Any, path: Path, **settings: Any) -> Path:
    """As safetensors; ``settings`` go into the generation config."""
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(path)
    return path


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Within ``tolerance`` of the largest number."""
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, float(np.abs(want).max())))
