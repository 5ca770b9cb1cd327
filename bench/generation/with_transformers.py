"""``transformers`` over PyTorch; int8 is PyTorch's dynamic quantization of linear layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from bench.generation import shapes
from bench.generation.padding import pad
from bench.generation.unsupported import Unsupported

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


class Side:
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.config = shapes.settings(path)
        self.dtype = self.computing(dtype)
        self.model = self.load(path, dtype)

    def computing(self, dtype: str) -> torch.dtype:
        """That of what goes in."""
        if dtype not in DTYPES:
            raise Unsupported(f"PyTorch has no {dtype} for the CPU without further libraries")
        return DTYPES[dtype]

    def load(self, path: Path, dtype: str) -> Any:
        made = getattr(transformers, self.config["architectures"][0])
        model = made.from_pretrained(path, dtype=self.dtype).eval()
        if dtype == "int8":
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
        return model

    def write(self, sources: Any, tokens: int, beams: int) -> list[list[int]]:
        given, before = self.inputs(sources)
        pad = self.config.get("pad_token_id")
        options = {"pad_token_id": self.config["eos_token_id"] if pad is None else pad}
        options |= {"max_new_tokens": tokens, "num_beams": beams, "do_sample": False}
        with torch.inference_mode():
            # Whisper's own generate() looks for times and languages around this one.
            made = transformers.GenerationMixin.generate(self.model, **given, **options)
        return [row.tolist() for row in made[:, before:]]

    def inputs(self, sources: Any) -> tuple[dict[str, Any], int]:
        """Arguments of the model, and how many tokens stand before those that it writes."""
        if shapes.hears(self.config):
            begin = torch.tensor([shapes.SPOKEN] * len(sources))
            return {"input_features": torch.tensor(sources).to(self.dtype), "decoder_input_ids": begin}, begin.shape[1]
        continues = not shapes.has_encoder(self.config)
        ids, mask = pad(sources, on_the_left=continues)
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return given, ids.shape[1] if continues else 1

    def logits(self, sources: Any, targets: Any) -> Any:
        given, _ = self.inputs(sources)
        wanted = torch.tensor(targets)
        if shapes.has_encoder(self.config):
            begin = given.pop("decoder_input_ids", torch.full((len(targets), 1), self.config["decoder_start_token_id"]))
            given["decoder_input_ids"] = torch.cat([begin, wanted[:, :-1]], dim=1)
        else:
            given = {"input_ids": torch.cat([given["input_ids"], wanted[:, :-1]], dim=1)}
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        with torch.inference_mode():
            return self.model(**given).logits[:, -targets.shape[1] :].float().numpy()
