"""Generation on the shapes of real models with random weights: ours in each dtype, ``transformers`` beside it.

    pip install ".[parity]" && python -m bench.generation --markdown

Greedy search of 64 tokens behind a source or prompt of 32, batch 1; sides take turns in one process, medians of the
rounds. A token's time is (time of all tokens - time of one) / (tokens - 1). The floor of a token is the time to read
what it needs once from memory: the matrices of all layers and of the vocabulary, as our dtype stores them, and the keys
and values of what was read and written before it (float32), at the rate at which this run reads an array that no cache
holds. Start-up and memory are those of a fresh process each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before maskattn, whose OpenMP then resolves to the runtime that PyTorch brings: one team, not two
import transformers

import maskattn
from bench import limits
from bench.side_by_side import PAUSE
from maskattn.linear import PackedWeight

PROMPT, TOKENS, SPOKEN = 32, 64, [50258, 50259, 50359, 50363]
S2S = {"pad_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 2, "forced_eos_token_id": None}
#: name: class, settings of its configuration.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Marian": ("MarianMTModel", S2S | {
        "vocab_size": 58101, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
        "activation_function": "swish", "scale_embedding": True, "max_position_embeddings": 512,
    }),
    "BART-base": ("BartForConditionalGeneration", S2S | {
        "vocab_size": 50265, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
        "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
        "activation_function": "gelu", "max_position_embeddings": 1024,
    }),
    "T5-small": ("T5ForConditionalGeneration", S2S | {
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
    }),
    "Whisper-base": ("WhisperForConditionalGeneration", S2S | {
        "vocab_size": 51865, "num_mel_bins": 80, "encoder_layers": 6, "encoder_attention_heads": 8,
        "decoder_layers": 6, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
        "d_model": 512, "suppress_tokens": None, "begin_suppress_tokens": None,
    }),
    "GPT-2": ("GPT2LMHeadModel", {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "eos_token_id": None,
    }),
    "Qwen2.5-0.5B": ("Qwen2ForCausalLM", {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": None,
    }),
    "TinyLlama": ("LlamaForCausalLM", {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False, "eos_token_id": None,
    }),
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "int8")
#: Writes so many tokens.
Write = Callable[[int], Any]
_FRESH = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
import maskattn
model = maskattn.load(sys.argv[1], dtype=sys.argv[2])
loaded = time.perf_counter() - start
if model.family.encoder is not None and model.family.encoder.inputs == "sound":
    import numpy as np
    source = np.zeros((1, 80, 3000), np.float32)
else:
    source = [[5] * 32]
model.generate_ids(source, max_new_tokens=1)
first = time.perf_counter() - start
status = Path("/proc/self/status")  # ru_maxrss would begin with what the parent had
peak = int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else float("nan")
print(json.dumps([loaded, first, peak]))
"""


@dataclass
class Times:
    """Seconds until the first token, and of each further one, by round."""

    first: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)

    def measure(self, write: Write) -> None:
        one, many = (seconds(write, count) for count in (1, TOKENS))
        self.first.append(one)
        self.token.append((many - one) / (TOKENS - 1))


def seconds(write: Write, count: int) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    made = write(count)
    assert len(made) == count, "all sides must write as many tokens"
    return time.perf_counter() - start


def build(name: str, root: Path) -> Path:
    """The checkpoint with random weights, made once."""
    path = root / name
    if not (path / "model.safetensors").is_file():
        kind, settings = SHAPES[name]
        made = getattr(transformers, kind)
        torch.manual_seed(0)
        model = made(made.config_class(**settings)).eval()
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=2, decoder_start_token_id=settings.get("decoder_start_token_id"), pad_token_id=1
        )
        model.save_pretrained(path)
    return path


def ours(path: Path, name: str, dtype: str) -> tuple[Write, maskattn.Model]:
    model = maskattn.load(path, dtype=dtype)
    source, options = inputs(name)
    return lambda count: model.generate_ids(source, max_new_tokens=count, **options)[0], model


def theirs(path: Path, name: str, dtype: str) -> Write:
    made = getattr(transformers, SHAPES[name][0])
    model = made.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    source, options = inputs(name)
    tensor = torch.tensor(np.asarray(source))
    given: dict[str, Any] = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
    before = PROMPT if not model.config.is_encoder_decoder else 1
    if options:
        given = {"input_features": tensor.to(model.dtype), "decoder_input_ids": torch.tensor([SPOKEN])}
        before = len(SPOKEN)

    @torch.inference_mode()
    def write(count: int) -> Any:
        return transformers.GenerationMixin.generate(model, **given, max_new_tokens=count, do_sample=False)[0, before:]

    return write


def inputs(name: str) -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(0)
    if name.startswith("Whisper"):
        return rng.standard_normal((1, 80, 3000), dtype=np.float32), {"prompt_ids": SPOKEN}
    return [rng.integers(3, SHAPES[name][1]["vocab_size"], PROMPT).tolist()], {}


def bytes_of_a_token(model: Any) -> int:
    """What a token's step reads: the matrices that it multiplies with, as they are stored, and keys and values."""
    stack = model._forward.decoder
    maps = [model._forward.head.map]
    for layer in stack.layers:
        maps += [layer.attention._qkv, layer.attention.out, layer.feed_forward.down]
        maps.append(getattr(layer.feed_forward, "_gate_up", None) or layer.feed_forward.up)
        maps += [] if layer.cross is None else [layer.cross.q, layer.cross.out]
    assert all(isinstance(linear.weight, PackedWeight) for linear in maps)
    sizes, encoder = stack.sizes, model._forward.encoder
    source = encoder.sizes.positions if encoder is not None and encoder.sizes.mels else PROMPT
    keys = (source + TOKENS // 2) * sizes.layers * sizes.kv_heads * sizes.head_dim
    return sum(linear.weight.nbytes for linear in maps) + 2 * 4 * keys


def compare(name: str, path: Path, dtype: str, rounds: int) -> dict[str, Any]:
    """Times in milliseconds, and what else is told of one model in one dtype."""
    write, model = ours(path, name, dtype)
    sides: dict[str, Write] = {"ours": write}
    if dtype != "int8":
        sides["transformers"] = theirs(path, name, dtype)
    probe, times, reads = limits.read_probe(), {side: Times() for side in sides}, []
    for side in sides.values():
        seconds(side, 2)
    for i in range(rounds):
        for side in list(sides)[:: -1 if i % 2 else 1]:
            times[side].measure(sides[side])
        start = time.perf_counter()
        probe.call()
        reads.append(time.perf_counter() - start)
    floor = bytes_of_a_token(model) / 1e9 / (probe.work / min(reads))
    loaded, first, peak = fresh(path, dtype)
    result: dict[str, Any] = {"model": name, "dtype": dtype, "floor_ms": floor * 1e3}
    for side, found in times.items():
        result[f"{side}_token_ms"] = statistics.median(found.token) * 1e3
        result[f"{side}_first_ms"] = statistics.median(found.first) * 1e3
    weights = model.parameters * {"float32": 4, "bfloat16": 2, "int8": 1}[dtype] / 1e6
    return result | {"load_s": loaded, "start_s": first, "peak_mb": peak, "weights_mb": weights}


def fresh(path: Path, dtype: str) -> list[float]:
    """Seconds to import and load, and to the first token besides; and megabytes, of a process of its own."""
    command = [sys.executable, "-c", _FRESH, str(path), dtype]
    found: list[float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def row(result: dict[str, Any]) -> str:
    def ratio(what: str) -> str:
        other = result.get(f"transformers_{what}_ms")
        return "" if other is None else f"**{other / result[f'ours_{what}_ms']:.1f}**"

    share = result["floor_ms"] / result["ours_token_ms"]
    return (
        f"| {result['model']} | {result['dtype']} | {result['ours_token_ms']:.2f} | {share:.2f} | {ratio('token')} | "
        f"{result['ours_first_ms']:.1f} | {ratio('first')} | {result['load_s']:.2f} | {result['start_s']:.2f} | "
        f"{result['peak_mb']:.0f} / {result['weights_mb']:.0f} |"
    )


COLUMNS = (
    "", "", "ms a token", "of the floor", "transformers", "ms to the first", "transformers", "load, s",
    "to first token, s", "MB, peak / weights",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * (len(COLUMNS) - 2)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHAPES), help="default: all")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", type=Path, help="where checkpoints are kept; default: a folder that is removed")
    parser.add_argument("--json", action="store_true", help="a JSON object per row")
    parser.add_argument("--markdown", action="store_true", help="a table, which is the default")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    maskattn.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if not options.json:
            print(HEAD)
        for name in options.models.split(","):
            path = build(name, options.root or Path(folder))
            for dtype in options.dtypes.split(","):
                result = compare(name, path, dtype, options.rounds)
                print(json.dumps(result) if options.json else row(result), flush=True)


if __name__ == "__main__":
    main()
