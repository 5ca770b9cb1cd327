"""Speculation: accepted tokens a pass and the speed-up over plain greedy search, on the shapes of real models.

    pip install ".[parity]" && python -m bench.speculation

64 tokens behind a source or prompt of 32; sides take turns in one process, medians of the rounds. Weights are random,
so what drafts are worth is set here: "known, 80%" drafts 6 tokens that greedy search writes, each of them right with
this probability, at no cost, as a lookup does in texts that repeat themselves so often; "assistant" is a model of the
first two layers of 24, and those behind them, scaled down, change a part of what it would write; "branches" are drafts
in trees.
What it costs to check drafts, and to make them, is real.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before maskattn, whose OpenMP then resolves to the runtime that PyTorch brings: one team, not two
import transformers

import maskattn
from bench.generation.shapes import SHAPES
from bench.side_by_side import PAUSE
from maskattn.decoder.arrays import IntArray
from maskattn.decoder.speculation.drafts import Drafts
from maskattn.decoder.speculation.page import Page
from maskattn.decoder.speculation.settings import Speculation

LLAMA = {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True, "eos_token_id": None,
}  # fmt: skip
#: name: class, settings, and those of the assistant that differ; None: it has none.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "Marian": (*SHAPES["Marian"], None),
    "GPT-2": (*SHAPES["GPT-2"], None),
    "Llama, 24 x 1024": ("LlamaForCausalLM", LLAMA, {"num_hidden_layers": 2}),
}
SCALE = 0.02  # of the outputs of the layers that the assistant lacks
OUTPUTS = r"layers\.(\d+)\..*(?:o_proj|down_proj)\.weight"
PROMPT, TOKENS, LENGTH = 32, 64, 6  # tokens read, written, and in a draft
BESIDE = 0.35  # of an assistant's wrong tokens, the share whose second best is right; measured on small trained models


@dataclass(frozen=True)
class Known:
    """A drafter that knows what will be written, by sequence, and says so with this probability, else another token.

    With ``branches`` the first places have a token beside them each, which is right for ``BESIDE`` of the wrong ones.
    """

    page: Page
    written: Sequence[Sequence[int]]
    right: float
    rng: np.random.Generator
    branches: int = 1

    def draft(self, rows: IntArray, most: IntArray) -> Drafts:
        trees = []
        for row, room in zip(rows.tolist(), most.tolist(), strict=True):
            begin = int(self.page.ends[row]) - self.page.begin
            truth = np.array(self.written[row][begin : begin + min(LENGTH, room)], np.int64)
            stem = np.where(self.rng.random(len(truth)) < self.right, truth, truth ^ 1)
            found = (stem != truth) & (self.rng.random(len(truth)) < BESIDE)
            ends = np.where(found, truth, truth ^ 2)
            tree = [np.append(stem[:place], ends[place]) for place in range(min(self.branches - 1, len(stem)))]
            trees.append([stem, *tree])
        return Drafts.of(trees)


def build(name: str, root: Path) -> list[Path]:
    """The model and its assistant, if it has one; made once."""
    kind, settings, fewer = MODELS[name]
    paths = [root / f"{name} {part}" for part in ("model", "assistant")][: 1 if fewer is None else 2]
    if all((path / "model.safetensors").is_file() for path in paths):
        return paths
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    model = made(made.config_class(**settings)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            # A spread at which greedy output wanders; tables of embeddings stay as they are.
            if value.ndim == 2 and not re.search("embed|wte|wpe|shared|lm_head", key):
                value.mul_(4)
            found = re.search(OUTPUTS, key)
            if fewer is not None and found and int(found[1]) >= fewer["num_hidden_layers"]:
                value.mul_(SCALE)
    made_all = [model]
    if fewer is not None:
        small = made(made.config_class(**settings | fewer)).eval()
        small.load_state_dict({key: value for key, value in model.state_dict().items() if key in small.state_dict()})
        made_all.append(small)
    for each, path in zip(made_all, paths, strict=True):
        each.generation_config = transformers.GenerationConfig(
            bos_token_id=2, decoder_start_token_id=settings.get("decoder_start_token_id"), pad_token_id=1
        )
        each.save_pretrained(path)
    return paths


def sides(paths: Sequence[Path], dtype: str, batch: int) -> dict[str, Callable[[], Any]]:
    model, *others = (maskattn.load(path, dtype=dtype) for path in paths)
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 30000, PROMPT).tolist() for _ in range(batch)]

    def plain() -> Any:
        return model.generate_ids(sources, max_new_tokens=TOKENS)

    def assisted(branches: int) -> Callable[[], Any]:
        drafts = {"assistant_model": others[0], "num_assistant_tokens": LENGTH, "assistant_confidence_threshold": 0}
        drafts |= {"num_draft_branches": branches}
        return lambda: model.generate_ids(sources, max_new_tokens=TOKENS, **drafts)

    def known(right: float, branches: int = 1) -> Callable[[], Any]:
        def write() -> Any:
            speculation, seeded = Speculation.drafter, np.random.default_rng(1)
            lookup = {"prompt_lookup_num_tokens": LENGTH, "num_draft_branches": branches}
            Speculation.drafter = lambda self, model, page, rules, memory: Known(page, want, right, seeded, branches)
            try:
                return model.generate_ids(sources, max_new_tokens=TOKENS, **lookup)
            finally:
                Speculation.drafter = speculation

        return write

    want = plain()
    named = {f"known, {right:.0%}": known(right) for right in (0.6, 0.8, 0.95)}
    named |= {f"known, 60%, {branches} branches": known(0.6, branches) for branches in (2, 4)}
    trees = {f"assistant, {branches} branches": assisted(branches) for branches in (2, 4)}
    return {"plain": plain, **named} | ({"assistant": assisted(1), **trees} if others else {})


def compare(paths: Sequence[Path], dtype: str, batch: int, rounds: int) -> list[str]:
    """Rows of the table."""
    writes = sides(paths, dtype, batch)
    times: dict[str, list[float]] = {side: [] for side in writes}
    want, rows = writes["plain"](), []
    for _ in range(rounds):
        for side, write in writes.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            made = write()
            times[side].append(time.perf_counter() - start)
            assert made == want, "drafts must not change the tokens"
    base = statistics.median(times["plain"])
    for side, write in writes.items():
        if side != "plain":
            counts = np.array([ids.speculated for ids in write()]).sum(axis=0)
            share, a_pass = counts[2] / counts[1], batch * TOKENS / counts[0]
            ratio = base / statistics.median(times[side])
            rows.append(
                f"{side} | {batch} | {base / TOKENS * 1e3:.2f} | {share:.0%} | {a_pass:.1f} | **{ratio:.2f}** |"
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=";".join(MODELS), help="default: all")
    parser.add_argument("--dtypes", default="float32,int8")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", type=Path, help="where checkpoints are kept; default: a folder that is removed")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    maskattn.set_num_threads(options.threads)
    print("|  |  | drafts | batch | plain, ms a step | accepted | tokens a pass | times as fast |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(";"):
            paths = build(name, options.root or Path(folder))
            for dtype in options.dtypes.split(","):
                for batch in map(int, options.batches.split(",")):
                    for row in compare(paths, dtype, batch, options.rounds):
                        print(f"| {name} | {dtype} | {row}", flush=True)


if __name__ == "__main__":
    main()
