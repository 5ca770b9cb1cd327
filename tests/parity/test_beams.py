"""Beam search: sequences, their order and scores are those of transformers for every family that has an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
stats = pytest.importorskip("scipy.stats")

import maskattn  # noqa: E402 - after the skips
from random_models import EOS, PAD, VOCAB, padded, randomize, save, sequences  # noqa: E402

NEW = 10
ENDS = list(range(1, VOCAB, 9))  # many, so that some sequences end before others
COMMON = {
    "vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2, "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}  # fmt: skip
BART: dict[str, Any] = {
    "d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20, "decoder_ffn_dim": 30, "max_position_embeddings": 80, "decoder_start_token_id": 2,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_model": 24, "d_kv": 8, "d_ff": 30, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": PAD
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 80,
}  # fmt: skip
#: Class of the configuration, of the model, and what they are made with.
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("Bart", "ForConditionalGeneration", BART),
    "mbart": ("MBart", "ForConditionalGeneration", BART),
    "pegasus": ("Pegasus", "ForConditionalGeneration", BART),
    "m2m": ("M2M100", "ForConditionalGeneration", BART),
    "marian": ("Marian", "MTModel", {**BART, "decoder_start_token_id": PAD}),
    "t5": ("T5", "ForConditionalGeneration", T5),
    "mt5": ("MT5", "ForConditionalGeneration", T5),
    "whisper": ("Whisper", "ForConditionalGeneration", {
        **BART, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 40,
        "suppress_tokens": None, "begin_suppress_tokens": None,
    }),
    "llama": ("Llama", "ForCausalLM", LLAMA),
    "gpt2": ("GPT2", "LMHeadModel", {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 80}),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Pair = tuple[Any, maskattn.Model, Any]


def make(name: str, path: Path) -> Pair:
    """Theirs, ours and what they read."""
    kind, model_class, settings = SHAPES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**COMMON | settings)
    model = getattr(transformers, f"{kind}{model_class}")(config).eval()
    randomize(model, 4, maps=3)
    sources: Any = sequences(4)
    if name == "whisper":
        sources = np.random.default_rng(0).standard_normal((5, 8, 40), dtype=np.float32)
    return model, maskattn.load(save(model, path)), sources


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(request.param, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make("bart", tmp_path_factory.mktemp("pair"))


@torch.no_grad()
def theirs(model: Any, sources: Any, **options: Any) -> tuple[list[list[int]], np.ndarray]:
    """New tokens up to what ended them, and scores."""
    decoder_only = not model.config.is_encoder_decoder
    if isinstance(sources, np.ndarray):
        inputs, start = {"input_features": torch.from_numpy(sources)}, 1
    else:
        ids, mask = padded(sources, "left" if decoder_only else "right")
        inputs, start = {"input_ids": ids, "attention_mask": mask}, ids.shape[1] if decoder_only else 1
    out = transformers.GenerationMixin.generate(
        model, **inputs, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True, **options
    )  # fmt: skip
    rows, ends = out.sequences[:, start:].tolist(), options["eos_token_id"]
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:n] for row, n in zip(rows, lengths, strict=True)], out.sequences_scores.numpy()


def check(pair: Pair, **options: Any) -> list[list[int]]:
    model, ours, sources = pair
    # Where the padding token stands among decoder inputs, some families of transformers take it for no token.
    options = {"eos_token_id": ENDS, "max_new_tokens": NEW, "suppress_tokens": [PAD], "do_sample": False, **options}
    want, scores = theirs(model, sources, **options)
    got = ours.generate_ids(sources, **options)
    assert got == want
    np.testing.assert_allclose([ids.score for ids in got], scores, rtol=1e-4, atol=1e-4)
    return want


@pytest.mark.parametrize("length_penalty", [-0.5, 0.6, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("num_beams", [4, 5])
def test_every_family(pair: Pair, num_beams: int, early_stopping: bool | str, length_penalty: float) -> None:
    returned = {"num_return_sequences": 3} if num_beams == 4 else {}
    want = check(pair, num_beams=num_beams, early_stopping=early_stopping, length_penalty=length_penalty, **returned)
    if num_beams == 4 and length_penalty < 1:  # above, longer ones win
        assert len({len(ids) for ids in want}) > 1, "some sequences must end before others"


OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 5},
    {"num_beams": 2, "eos_token_id": [EOS]},
    {"num_beams": 5, "renormalize_logits": True, "exponential_decay_length_penalty": (3, 1.1)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_other_options(pair: Pair, options: dict[str, Any]) -> None:
    check(pair, **options)


@pytest.mark.parametrize("num_beams", [2, 5])
def test_without_scores_of_all_tokens(pair: Pair, num_beams: int) -> None:
    """Where no option looks at scores, the core gives the best tokens alone: what a search over all of them finds."""
    model, ours, sources = pair
    options: dict[str, Any] = {
        "num_beams": num_beams, "num_return_sequences": 2, "eos_token_id": ENDS, "max_new_tokens": NEW
    }  # fmt: skip
    got = ours.generate_ids(sources, **options)
    over_all = ours.generate_ids(sources, **options, logits_processor=[lambda ids, scores: scores])
    assert got == over_all
    np.testing.assert_allclose([ids.score for ids in got], [ids.score for ids in over_all], rtol=0, atol=1e-5)
    if model.config.model_type in ("bart", "t5", "llama"):  # which also read a padding token that was written
        want, scores = theirs(model, sources, do_sample=False, **options)
        assert got == want
        np.testing.assert_allclose([ids.score for ids in got], scores, rtol=1e-4, atol=1e-4)


def test_alone_as_in_a_batch(pair: Pair) -> None:
    _, ours, sources = pair
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 2, "eos_token_id": ENDS, "max_new_tokens": NEW}
    together = ours.generate_ids(sources, return_log_probabilities=True, **options)
    alone = [
        ids
        for i in range(len(sources))
        for ids in ours.generate_ids(sources[i : i + 1], return_log_probabilities=True, **options)
    ]
    assert together == alone
    assert [ids.score for ids in together] == [ids.score for ids in alone]
    totals = [ids.log_probabilities.sum(dtype=float) / len(ids) for ids in together]  # type: ignore[union-attr]
    np.testing.assert_allclose(totals, [ids.score for ids in together], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [
    {}, {"temperature": 2.0, "top_k": 3, "num_return_sequences": 2}, {"top_p": 0.1}, {"min_p": 0.7}, {"typical_p": 0.1},
    {"epsilon_cutoff": 0.4}, {"eta_cutoff": 0.4},
], ids=str)  # fmt: skip
def test_drawn_beams_in_distribution(bart: Pair, options: dict[str, Any]) -> None:
    """Of the first tokens, and of lengths: homogeneity of both samples."""
    model, ours, _ = bart
    sources = [[5, 9, 30]] * 1500
    common: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 3, "do_sample": True, "suppress_tokens": [PAD]}
    common |= {"eos_token_id": [EOS, 33, 75], **options}
    torch.manual_seed(1)
    want = theirs(model, sources, **common)[0]
    got = ours.generate_ids(sources, seed=5, **common)
    for what in (lambda ids: ids[0], lambda ids: tuple(ids[1:])):
        kinds = sorted({what(ids) for ids in want + got}, key=str)
        table = np.array([[sum(what(ids) == kind for ids in some) for kind in kinds] for some in (want, got)])
        rare = table.sum(axis=0) < 20
        table = np.concatenate([table[:, ~rare], table[:, rare].sum(axis=1, keepdims=True)], axis=1)
        table = table[:, table.sum(axis=0) > 0]
        assert table.shape[1] > 1
        assert stats.chi2_contingency(table).pvalue > 1e-4
