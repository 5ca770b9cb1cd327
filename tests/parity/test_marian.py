"""Random-weight Marian checkpoints: our tokens and log-probabilities are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail

VOCAB, PAD, NEW = 64, 63, 64
CLEAR = 1e-4  # A lead that rounding can't turn round: our logits differ from those of transformers by some 1e-5.
LENGTHS = (1, 5, 17, 30, 2, 9, 40, 3)
COMMON = {
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "max_position_embeddings": 80,
}
# encoder and decoder: (layers, heads, ffn). Every flag that Marian configs set is met both ways.
SHAPES: dict[str, dict[str, Any]] = {
    "swish-scaled-tied": dict(width=32, encoder=(2, 4, 48), decoder=(3, 2, 64), act="swish", scale_embedding=True),
    "relu-untied-head": dict(width=48, encoder=(3, 3, 20), decoder=(1, 6, 96), act="relu", tie_word_embeddings=False),
    "gelu-two-vocabularies": dict(
        width=40,
        encoder=(1, 8, 33),
        decoder=(2, 5, 65),
        act="gelu",
        scale_embedding=True,
        tie_word_embeddings=False,
        share_encoder_decoder_embeddings=False,
        decoder_vocab_size=75,
    ),
    "silu-two-vocabularies-tied": dict(
        width=64,
        encoder=(4, 1, 128),
        decoder=(4, 16, 32),
        act="silu",
        share_encoder_decoder_embeddings=False,
        decoder_vocab_size=70,
    ),
    "gelu-scaled-tied": dict(width=24, encoder=(2, 2, 96), decoder=(2, 2, 96), act="gelu", scale_embedding=True),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, PAD, n).tolist() for n in LENGTHS]


def config(width: int, encoder: tuple[int, ...], decoder: tuple[int, ...], act: str, **flags: Any) -> Any:
    sides = {
        f"{side}_{name}": value
        for side, values in (("encoder", encoder), ("decoder", decoder))
        for name, value in zip(("layers", "attention_heads", "ffn_dim"), values, strict=True)
    }
    return transformers.MarianConfig(d_model=width, activation_function=act, **sides, **COMMON, **flags)


def padded(sequences: list[list[int]]) -> tuple[Any, Any]:
    ids = torch.full((len(sequences), max(map(len, sequences))), PAD)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    return ids, mask


@torch.no_grad()
def random_model(shape: str, sources: list[list[int]], seed: int = 0) -> Any:
    """Weights whose greedy output wanders. Plain random ones repeat one token for ever, which would prove little."""
    torch.manual_seed(seed)
    model = transformers.MarianMTModel(config(**SHAPES[shape])).eval()
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            continue
        fan_in = parameter.shape[-1]
        if name.endswith("norm.weight"):
            parameter.normal_()  # Of both signs: a tied head otherwise likes the token it has just read best.
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
        elif "embed" in name or "shared" in name or "lm_head" in name:
            parameter.normal_(0, 0.5 * (fan_in**-0.5 if model.config.scale_embedding else 1))
        else:
            parameter.normal_(0, 0.7 * fan_in**-0.5)
    # What all positions have in common would make one token win everywhere.
    ids, mask = padded(sources)
    inputs = torch.randint(0, model.config.decoder_vocab_size, (len(sources), NEW))
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs).logits
    model.final_logits_bias.sub_(logits.mean((0, 1)))
    return model


@torch.no_grad()
def reference_tokens(model: Any, sources: list[list[int]], **settings: Any) -> tuple[list[list[int]], float]:
    """Greedy tokens of transformers without the start token and without padding behind the end token.

    And the narrowest lead of a chosen token over the next best: where two are nearly tied, rounding decides.
    """
    ids, mask = padded(sources)
    out = model.generate(
        ids,
        attention_mask=mask,
        num_beams=1,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    rows = out.sequences[:, 1:].tolist()
    lengths = [row.index(0) + 1 if 0 in row else len(row) for row in rows]
    best = [scores.topk(2).values for scores in out.scores]
    lead = min(float(best[t][i, 0] - best[t][i, 1]) for i, n in enumerate(lengths) for t in range(n))
    return [row[:n] for row, n in zip(rows, lengths, strict=True)], lead


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, "float32") for shape in SHAPES] + [(s, d) for s in list(SHAPES)[::2] for d in ("float16", "bfloat16")],
)
def test_greedy_tokens(shape: str, dtype: str, sources: list[list[int]], tmp_path: Path) -> None:
    for seed in range(10):
        model = random_model(shape, sources, seed)
        model.generation_config.bad_words_ids = [[PAD]]
        model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
        reference = transformers.MarianMTModel.from_pretrained(tmp_path, dtype=torch.float32)
        want, lead = reference_tokens(reference, sources, max_new_tokens=NEW)
        if lead > CLEAR:
            break
    assert lead > CLEAR, "no seed without a near tie"
    assert len({tuple(ids) for ids in want}) >= 6, "the sources must matter"
    assert np.mean([len(set(ids)) for ids in want]) >= 5, "the output must wander"
    assert maskattn.load(tmp_path).generate_ids(sources, max_new_tokens=NEW) == want


@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities(shape: str, sources: list[list[int]], tmp_path: Path) -> None:
    reference = random_model(shape, sources)
    reference.save_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    vocab = reference.config.decoder_vocab_size
    targets = [rng.integers(0, vocab, n).tolist() for n in (7, 1, 64, 3, 20, 33, 2, 80)]
    ours = maskattn.load(tmp_path).score_ids(sources, targets)
    ids, mask = padded(sources)
    inputs = padded([[PAD, *target[:-1]] for target in targets])[0]
    with torch.no_grad():
        logits = reference(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs).logits
    want = logits.log_softmax(-1).numpy()
    for i, target in enumerate(targets):
        assert ours[i].shape == (len(target),)
        np.testing.assert_allclose(ours[i], want[i, np.arange(len(target)), target], rtol=0, atol=1e-4)


def test_cross_attention(sources: list[list[int]], tmp_path: Path) -> None:
    reference = random_model("swish-scaled-tied", sources)
    reference.save_pretrained(tmp_path)
    source, target = sources[2], [5, 9, 1, 60, 0]
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        out = reference(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([[PAD, *target[:-1]]]),
            output_attentions=True,
        )
    want = torch.cat(out.cross_attentions).numpy()
    ours = maskattn.load(tmp_path).cross_attention(source, target)
    assert ours.shape == (3, 2, len(target), len(source))
    np.testing.assert_allclose(ours, want, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 30},
        {},
        {"forced_bos_token_id": 7},
        {"min_length": 40},
        {"min_new_tokens": 40},
        {"suppress_tokens": [1, 2, 3, 4, 5]},
        {"begin_suppress_tokens": list(range(40))},
        {"begin_suppress_tokens": list(range(40)), "forced_bos_token_id": 7},
        {"bad_words_ids": "pairs"},
        {"eos_token_id": [0, 1, 2, 3, 4, 5, 6]},
        {"forced_eos_token_id": None},
    ],
    ids=str,
)
def test_generation_config(settings: dict[str, Any], sources: list[list[int]], tmp_path: Path) -> None:
    """Each setting is read from generation_config.json and changes what transformers writes, and what we write."""
    model = random_model("relu-untied-head", sources)
    limit = {} if "max_length" in settings or not settings else {"max_new_tokens": 50}
    plain, _ = reference_tokens(model, sources, **limit)
    if settings.get("bad_words_ids") == "pairs":  # Forbid what it would write: a first token, and pairs further on.
        settings = {"bad_words_ids": [plain[0][:1], *[ids[3:5] for ids in plain], [0]]}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(tmp_path)
    want, lead = reference_tokens(model, sources, **limit)
    want = _stop_at(want, settings.get("eos_token_id", [0]))
    assert lead > CLEAR
    assert not settings or want != plain
    assert maskattn.load(tmp_path).generate_ids(sources, **limit) == want


def test_old_checkpoint_without_generation_config(sources: list[list[int]], tmp_path: Path) -> None:
    """Its config.json then holds the generation settings."""
    model = random_model("relu-untied-head", sources)
    model.generation_config.forced_bos_token_id = 9
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("{", '{"max_length": 30, "forced_bos_token_id": 9,', 1))
    want, _ = reference_tokens(model, sources, max_length=30)
    assert want[0][0] == 9
    assert maskattn.load(tmp_path).generate_ids(sources) == want


def _stop_at(sequences: list[list[int]], ends: list[int]) -> list[list[int]]:
    stops = ([i + 1 for i, token in enumerate(ids) if token in ends] for ids in sequences)
    return [ids[: stop[0]] if stop else ids for ids, stop in zip(sequences, stops, strict=True)]


DATES = Path(maskattn.__file__).parent / "data" / "dates"


def test_embedded_default() -> None:
    model = maskattn.load()
    texts = ["the 3rd of March, 2024", "Sun 3 Mar 2024", "03/04/2024", "3.3.24", "March 2024", "20240303", "x", "Mai 1"]
    sources = [model.tokenizer.encode(text) for text in texts]
    reference = transformers.MarianMTModel.from_pretrained(DATES, dtype=torch.float32)
    ids, mask = padded(sources)
    ids *= mask  # The filler of the random models is no token here.
    rows = reference.generate(ids, attention_mask=mask, num_beams=1, do_sample=False, max_new_tokens=20)[:, 1:].tolist()
    assert model.generate_ids(sources, max_new_tokens=20) == _stop_at(rows, [reference.generation_config.eos_token_id])
