"""How far each dtype's scores are from float32's, ours beside others'."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.generation import measure, report, shapes
from bench.generation.exact import relative_error
from bench.generation.shapes import Workload
from bench.generation.sides import OURS, Failed, Side

#: Sources or prompts, and as many targets of TOKENS each: teacher forcing.
SOURCES, TOKENS = (24, 24, 24, 24), 24
HEAD = ("model", "dtype", "side", "logits, relative error", "log-probabilities, rms error", "the same best token")


def table(options: argparse.Namespace, root: Path, left_out: measure.LeftOut) -> str:
    """Rows of a table: every side's error against the float32 scores of ``transformers``, or ours without it.

    The error of logits is the norm of the difference over the norm, of all positions and the whole vocabulary; that of
    log-probabilities, of random targets, stands also where a library gives no logits.
    """
    lines = [report.heading(HEAD)]
    names = sorted((OURS, *options.peers), key="transformers".__ne__)  # the first one is compared with
    for model in options.models:
        path = shapes.build(model, root)
        want: Mapping[str, Any] = {}
        for dtype in dict.fromkeys(("float32", *options.dtypes)):
            for name in names:
                try:
                    found = _score(name, path, dtype, options)
                except Failed as failed:
                    left_out[name, str(failed)].append(f"{model} {dtype}")
                    continue
                if want:
                    lines.append(report.line([model, dtype, name, *_errors(found, want)]))
                want = want or found
    return "\n".join(lines)


def _score(name: str, path: Path, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    config = shapes.settings(path)
    workload = Workload("accuracy", (0,) * 2 if shapes.hears(config) else SOURCES)
    ordinary = np.setdiff1d(np.arange(config["vocab_size"]), shapes.special_tokens(config))
    targets = np.random.default_rng(1).choice(ordinary, (len(workload.lengths), TOKENS)).tolist()
    side = Side.start(name, path, dtype, options.threads, options.pythons, Workload("first", workload.lengths[:1]))
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "scores.npz"
            side.ask("score", workload, targets=targets, file=str(file))
            with np.load(file) as found:
                return dict(found)
    finally:
        side.close()


def _errors(found: Mapping[str, Any], want: Mapping[str, Any]) -> list[str]:
    likely = f"{np.sqrt(np.mean((found['likely'] - want['likely']) ** 2)):.1e}"
    if "logits" not in found:
        return ["", likely, ""]
    same = np.mean(found["logits"].argmax(-1) == want["logits"].argmax(-1))
    return [f"{relative_error(found['logits'], want['logits']):.1e}", likely, f"{same:.0%}"]
