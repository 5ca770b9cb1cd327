"""What files and generation configs say, for other families than Marian: as transformers understands it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402 - after the skips, so that a machine without PyTorch skips before anything else can fail
from random_models import (  # noqa: E402
    CLEAR,
    EOS,
    PAD,
    VOCAB,
    Greedy,
    centre_head,
    close,
    padded,
    randomize,
    save,
    sequences,
)

TOKENS = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(seed: int = 0) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, max_position_embeddings=128, **TOKENS,
    )  # fmt: skip
    return centred(transformers.LlamaForCausalLM(config).eval(), seed)


def centred(model: Any, seed: int) -> Any:
    randomize(model, seed)
    ids, mask = padded(sequences(seed=7))
    with torch.no_grad():
        centre_head(model, model.base_model(ids, attention_mask=mask).last_hidden_state[mask.bool()])
    return model


def bart(**more: Any) -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCAB, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=6, encoder_ffn_dim=60, decoder_ffn_dim=40, max_position_embeddings=80,
        decoder_start_token_id=2, forced_eos_token_id=None, **TOKENS, **more,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    randomize(model, 0)
    return model


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(dtype: str, tmp_path: Path) -> None:
    """Decoder-only in one file, encoder-decoder in shards."""
    prompts = sequences()
    llama().to(getattr(torch, dtype)).save_pretrained(tmp_path / "llama")
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    ours = maskattn.load(tmp_path / "llama")
    with torch.no_grad():
        for prompt in prompts:
            close(ours._forward.logits(ours._forward.decode(np.array([prompt])))[0],
                  reference(torch.tensor([prompt])).logits[0].numpy(), 1e-4)  # fmt: skip
    bart().to(getattr(torch, dtype)).save_pretrained(tmp_path / "bart", max_shard_size="30KB")
    assert not (tmp_path / "bart" / "model.safetensors").exists()
    other = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "bart", dtype=torch.float32)
    ids, mask = padded(prompts)
    with torch.no_grad():
        want = other.model.encoder(ids, attention_mask=mask).last_hidden_state
    for i, hidden in enumerate(maskattn.load(tmp_path / "bart").encode(prompts)):
        close(hidden, want[i, : len(prompts[i])].numpy(), 1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_new_tokens": 15, "eos_token_id": list(range(1, 80))},
        {"max_length": 40},
        {},
        {"eos_token_id": [1, 2, 3, 4, 5, 6, 7, 8, 9]},
        {"suppress_tokens": list(range(10, 90))},
        {"begin_suppress_tokens": list(range(100))},
        {"forced_eos_token_id": 5},
        {"bad_words_ids": "pairs"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_generation_config_of_a_decoder_only_model(settings: dict[str, Any], tmp_path: Path) -> None:
    """Each prompt alone in transformers, whose lengths count the padding of a batch."""
    model, prompts = llama(), sequences()[:7]
    model.generation_config.max_new_tokens = None if "max_length" in settings or not settings else 24
    plain = alone(model, prompts)[0]
    if settings.get("bad_words_ids") == "pairs":  # what it would write, and what stands at the end of a prompt
        settings = {"bad_words_ids": [plain[0][:1], *[ids[3:5] for ids in plain], [prompts[2][-1], plain[2][0]]]}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(tmp_path)
    want, lead = alone(model, prompts)
    assert lead > CLEAR
    assert not settings or want != plain
    assert maskattn.load(tmp_path).generate_ids(prompts) == want


@torch.no_grad()
def alone(model: Any, prompts: list[list[int]]) -> tuple[list[list[int]], float]:
    made, lead = [], np.inf
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            num_beams=1, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        made.append(out.sequences[0, len(prompt) :].tolist())
        best = [scores.topk(2).values[0] for scores in out.scores]
        lead = min(lead, min(float(b[0] - b[1]) for b in best if torch.isfinite(b).all()))
    return made, lead


def test_a_prompt_for_the_decoder(tmp_path: Path) -> None:
    """Language tokens, as mBART and NLLB want them, by forced_bos_token_id or as what the decoder begins with."""
    model, sources = bart(), sequences()
    ids, mask = padded(sources)
    greedy = Greedy(max_new_tokens=12)
    prompt = [2, 77, 31]
    want = greedy(model, 3, input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([prompt] * 8))
    assert greedy.lead > CLEAR
    ours = maskattn.load(save(model, tmp_path))
    assert ours.generate_ids(sources, prompt_ids=prompt, max_new_tokens=12) == want
    assert ours.generate_ids(sources, max_new_tokens=12) != want
    forced = Greedy(max_new_tokens=12, forced_bos_token_id=77)
    want = forced(model, 1, input_ids=ids, attention_mask=mask)
    assert maskattn.load(save(model, tmp_path, forced_bos_token_id=77)).generate_ids(sources, max_new_tokens=12) == want


def test_t5_with_a_head_of_its_own(tmp_path: Path) -> None:
    """As T5 v1.1 and Flan have it, besides the embeddings and not scaled."""
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=36, num_layers=2, num_heads=3, d_kv=8, d_ff=50, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0, **TOKENS,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    randomize(model, 0)
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = np.random.default_rng(0).standard_normal((VOCAB, 36), dtype=np.float32)
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(head))
    sources, inputs = sequences(), [0, 5, 6, 7]
    ours = maskattn.load(tmp_path)
    for source in sources:
        with torch.no_grad():
            want = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([inputs])).logits[0].numpy()
        memory = ours._forward.encode([np.array(source)])
        close(ours._forward.logits(ours._forward.decode(np.array([inputs]), memory))[0], want, 1e-4)


def test_a_bare_model_and_what_old_files_hold_besides(tmp_path: Path) -> None:
    """GPT-2 as it was first published: no prefix, and the causal mask among the tensors. BERT: gamma and beta."""
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=64, **TOKENS)
    model = centred(transformers.GPT2LMHeadModel(config).eval(), 1)
    model.transformer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "h.0.attn.c_attn.weight" in tensors
    buffers = {f"h.{i}.attn.bias": np.ones((1, 1, 64, 64), np.uint8) for i in range(2)}
    save_file(tensors | buffers, tmp_path / "model.safetensors")
    prompts, greedy = sequences(), Greedy(max_new_tokens=20)
    ids, mask = padded(prompts, "left")
    want = greedy(model, ids.shape[1], input_ids=ids, attention_mask=mask)
    assert maskattn.load(tmp_path).generate_ids(prompts, max_new_tokens=20) == want

    config = transformers.BertConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=30, max_position_embeddings=40)  # fmt: skip
    bert = transformers.BertForPreTraining(config).eval()
    randomize(bert, 0)
    bert.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in tensors.items()}  # fmt: skip
    assert set(old) != set(tensors)
    save_file(old, tmp_path / "model.safetensors")
    ids, mask = padded(prompts)
    with torch.no_grad():
        out = bert.bert(ids, attention_mask=mask)
    ours = maskattn.load(tmp_path)
    for i, hidden in enumerate(ours.encode(prompts)):
        close(hidden, out.last_hidden_state[i, : len(prompts[i])].numpy(), 1e-5)
    close(ours.pool(prompts), out.pooler_output.numpy(), 1e-5)
