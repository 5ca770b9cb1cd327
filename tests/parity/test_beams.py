"""Beam search: sequences, their order and scores are those of transformers, in ragged batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips
from random_models import EOS, PAD, VOCAB, padded, randomize, save, sequences  # noqa: E402

NEW = 14
ENDS = list(range(1, VOCAB, 3))  # many, so that some sequences end before others
COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bart": ("BartForConditionalGeneration", {
        "d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 20, "decoder_ffn_dim": 30, "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    }),
    "T5": ("T5ForConditionalGeneration", {
        "d_model": 24, "d_kv": 8, "d_ff": 30, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": 0,
    }),
    "Llama": ("LlamaForCausalLM", {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 40, "max_position_embeddings": 80,
    }),
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0},
    {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5, "num_return_sequences": 3},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 5},
    {"num_beams": 2, "eos_token_id": EOS},
]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    kind, settings = SHAPES[request.param]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{request.param}Config")(**COMMON | settings)).eval()
    randomize(model, 4, maps=3)
    return model, maskattn.load(save(model, tmp_path_factory.mktemp("pair")))


@torch.no_grad()
def theirs(model: Any, sources: list[list[int]], **options: Any) -> tuple[list[list[int]], np.ndarray]:
    decoder_only = not model.config.is_encoder_decoder
    ids, mask = padded(sources, "left" if decoder_only else "right")
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD,
        return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    rows = out.sequences[:, ids.shape[1] if decoder_only else 1 :].tolist()
    ends = np.atleast_1d(options["eos_token_id"])
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:n] for row, n in zip(rows, lengths, strict=True)], out.sequences_scores.numpy()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_beam_search(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    model, ours = pair
    sources, options = sequences(4), {"eos_token_id": ENDS, **options}
    want, scores = theirs(model, sources, **options)
    got = ours.generate_ids(sources, max_new_tokens=NEW, return_log_probabilities=True, **options)
    assert got == want
    if not {"no_repeat_ngram_size", "repetition_penalty"} & options.keys():
        power = options.get("length_penalty", 1.0)
        totals = [ids.log_probabilities.sum(dtype=float) / len(ids) ** power for ids in got]
        np.testing.assert_allclose(totals, scores, rtol=1e-4, atol=1e-4)
    if options["eos_token_id"] == ENDS and options.get("length_penalty", 1) <= 1:  # above, longer ones win
        assert len({len(ids) for ids in want}) > 1, "some sequences must end before others"
    alone = [ids for source in sources for ids in ours.generate_ids([source], max_new_tokens=NEW, **options)]
    assert alone == got
