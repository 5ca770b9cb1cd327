"""generate with options, whole: our tokens and processed scores, step by step, are those of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips
import maskattn.decoder.generate  # noqa: E402
from random_models import EOS, PAD, VOCAB, close, padded, randomize, save, sequences  # noqa: E402

NEW = 24
COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}
BART = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3} | {
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 30,
    "decoder_start_token_id": 2,
}
LLAMA = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    "intermediate_size": 40,
    "max_position_embeddings": 80,
}
#: No option here looks at what transformers counts in a ragged batch of prompts: the padding in front of them.
GREEDY: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 10},
    {"bad_words_ids": [[PAD], [5, 6], [7]], "suppress_tokens": [9, 10, 11], "forced_eos_token_id": EOS},
    {"sequence_bias": [[[3], 2.5], [[4], -3.0], [[3, 4], 9.0]], "exponential_decay_length_penalty": (5, 1.1)},
    {"begin_suppress_tokens": list(range(10, 150)), "remove_invalid_values": True, "renormalize_logits": True},
]
SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.4, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.2},
    {"typical_p": 0.6, "epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02, "renormalize_logits": True, "no_repeat_ngram_size": 3},
    {"top_h": 0.5},
]


@pytest.fixture(scope="module", params=["Bart", "Llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    kind = {"Bart": "BartForConditionalGeneration", "Llama": "LlamaForCausalLM"}[request.param]
    config = getattr(transformers, f"{request.param}Config")(**COMMON | (BART if request.param == "Bart" else LLAMA))
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    randomize(model, 3, maps=2)
    return model, maskattn.load(save(model, tmp_path_factory.mktemp("pair")))


@torch.no_grad()
def theirs(model: Any, sources: list[list[int]], **options: Any) -> tuple[list[list[int]], list[np.ndarray]]:
    """New tokens, and the processed scores of each step (batch, vocab)."""
    decoder_only = not model.config.is_encoder_decoder
    ids, mask = padded(sources, "left" if decoder_only else "right")
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        num_beams=1,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = out.sequences[:, ids.shape[1] if decoder_only else 1 :].tolist()
    ends = [row.index(EOS) + 1 if EOS in row else len(row) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)], [scores.numpy() for scores in out.scores]


@pytest.mark.parametrize("options", GREEDY)
def test_greedy_tokens(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    model, ours = pair
    sources = sequences(4)
    want = theirs(model, sources, **options)[0]
    assert ours.generate_ids(sources, max_new_tokens=NEW, **options) == want
    assert want != theirs(model, sources)[0], "the options matter"


@pytest.mark.parametrize("options", SAMPLED)
def test_processed_scores_of_sampling(
    pair: tuple[Any, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """We are made to draw what transformers has drawn, so that every step has the same past."""
    model, ours = pair
    sources = sequences(5)
    transformers.set_seed(0)
    want, wanted = theirs(model, sources, do_sample=True, **options)
    found: list[np.ndarray] = []

    def drawn(scores: np.ndarray, streams: list[Any]) -> np.ndarray:
        found.append(scores.copy())
        open_ = [ids for ids in want if len(ids) >= len(found)]
        assert len(open_) == len(scores) == len(streams)
        return np.array([ids[len(found) - 1] for ids in open_])

    monkeypatch.setattr(maskattn.decoder.generate, "draw", drawn)
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    want = [want[i] for i in order]
    assert ours.generate_ids([sources[i] for i in order], max_new_tokens=NEW, do_sample=True, **options) == want
    assert len(found) == max(map(len, want))
    for step, scores in enumerate(found):
        theirs_now = wanted[step][[i for i, ids in zip(order, want, strict=True) if len(ids) > step]]
        # A token at the edge of a filter may fall on either side.
        edge = np.isneginf(scores) != np.isneginf(theirs_now)
        assert edge.sum() <= 1
        both = ~edge & (scores > -np.inf)
        close(scores[both], theirs_now[both], 1e-4)
