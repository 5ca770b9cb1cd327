"""Generation on the shapes of real models with random weights: ours in each dtype, beside whoever else is installed.

    pip install ".[parity]" && python -m bench.generation

Greedy search of 64 tokens behind sources or prompts of several lengths, Marian's also in a ragged batch of 16 and by 4
beams. Every side has a process of its own, and they take turns; medians of the rounds, ratios and shares of the floor
paired by round. A step's time is (time of all tokens - time of one) / (tokens - 1). The floor of a step is the time to
read what it needs once from memory: the matrices of all layers and of the vocabulary, as our dtype stores them, and
the keys and values of what was read and written before it, at the rate at which this run reads an array that no cache
holds; where a cache of the processor holds part of a small model, less time than that is possible. "Outside the core"
is the share of a step of ours in which no C++ runs. Start-up and memory are of a process that writes one token.

Libraries that need other environments get them by --python, such as --python openvino=other/bin/python
--python onnxruntime=other/bin/python; who is missing is named at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch  # before maskattn, whose OpenMP then resolves to the runtime that PyTorch brings: one team, not two

from bench import side_by_side
from bench.generation import accuracy, measure, report, shapes
from bench.generation.sides import OURS, PEERS
from maskattn.linear import DTYPES


def listed(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{option} must be of {', '.join(known)}; got {', '.join(unknown)}")
    return names


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(shapes.SHAPES), help="default: all")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="default: all")
    parser.add_argument("--workloads", default="", metavar="REGEX", help="whose name it matches (32, beam 4, ...)")
    parser.add_argument("--peers", default=",".join(PEERS), help="as far as installed; default: all")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=FILE", help="a peer's interpreter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", type=Path, help="where checkpoints are kept; default: a folder that is removed")
    parser.add_argument("--accuracy", action="store_true", help="errors of logits in each dtype, and no times")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bars of ours, the floor and the best peer")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="replace a section of a document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's times")
    parser.add_argument("--markdown", action="store_true", help="a table, which is the default")
    options = parser.parse_args(arguments)
    options.models = listed(options.models, list(shapes.SHAPES), "--models")
    options.dtypes = listed(options.dtypes, DTYPES, "--dtypes")
    options.peers = listed(options.peers, list(PEERS), "--peers")
    options.pythons = {}
    for given in options.python:
        name, _, file = given.partition("=")
        listed(name, list(PEERS), "--python")
        if shutil.which(file) is None:
            raise SystemExit(f"--python must name an interpreter, got {file!r} for {name}")
        options.pythons[name] = file
    return options


def run(options: argparse.Namespace, root: Path, left_out: measure.LeftOut) -> list[measure.Row]:
    chosen = {m: [w for w in shapes.workloads(m) if re.search(options.workloads, w.name)] for m in options.models}
    if not any(chosen.values()):
        known = {w.name for model in options.models for w in shapes.workloads(model)}
        raise SystemExit(f"--workloads must match one of {', '.join(sorted(known))}; got {options.workloads!r}")
    rows = []
    for model, wanted in chosen.items():
        if not wanted:
            continue
        path = shapes.build(model, root)
        for dtype in options.dtypes:
            names = (OURS, *options.peers)
            sides = measure.start(names, path, dtype, options.threads, options.pythons, wanted[0], left_out)
            try:
                for workload in wanted:
                    rows.append(
                        measure.measure(model, dtype, workload, sides, options.rounds, options.threads, left_out)
                    )
                    print(report.line(report.cells(rows[-1])), flush=True)
            finally:
                for side in sides:
                    side.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)  # of the probe that reads
    left_out = measure.LeftOut()
    with tempfile.TemporaryDirectory() as folder:
        root = (options.root or Path(folder)).resolve()
        if options.accuracy:
            section, text = "generation accuracy", accuracy.table(options, root, left_out)
            print(text)
        else:
            print(report.heading(), flush=True)
            section, text = "generation", finish(options, run(options, root, left_out))
    text += report.missing(left_out)
    print(report.missing(left_out))
    if options.write:
        about = f"{side_by_side.machine()}; {side_by_side.plural(options.threads)}, medians of {options.rounds} rounds"
        side_by_side.write_section(options.write, section, f"{about}\n\n{text}")


def finish(options: argparse.Namespace, rows: Sequence[measure.Row]) -> str:
    """Writes the files that are asked for; returns the tables."""
    if options.json:
        options.json.write_text(json.dumps([report.as_json(row) for row in rows], indent=1) + "\n")
    if options.plot:
        from bench.generation.plot import plot_steps

        plot_steps(rows, options.plot)
    every = f"Every side, ms a step / to the first token:\n\n{report.everyone(rows)}\n{report.disturbed(rows)}"
    print(f"\n{every}")
    return "\n".join([report.heading(), *(report.line(report.cells(row)) for row in rows), "", every])


if __name__ == "__main__":
    main()
