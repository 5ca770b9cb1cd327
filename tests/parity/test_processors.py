"""Options of generation: what they make of scores is what transformers' processors make of them, in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.generation.utils import GenerationMixin  # noqa: E402 - after the skips

from maskattn.decoder.options import Options  # noqa: E402
from maskattn.decoder.processors import NO_TOKEN, Step  # noqa: E402
from maskattn.decoder.rules import Rules  # noqa: E402

VOCAB, LIMIT = 40, 9
tokens = st.integers(0, VOCAB - 1)
some_tokens = st.lists(tokens, min_size=1, max_size=4, unique=True)
words = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=5)
share = st.floats(0.02, 0.98)
#: Values under which an option is on; small tokens, so that sequences meet again in short pasts.
ON: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.floats(0.5, 3),
    "encoder_repetition_penalty": st.floats(0.5, 3),
    "no_repeat_ngram_size": st.integers(1, 3),
    "encoder_no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": words,
    "sequence_bias": words.map(
        lambda found: [[word, 0.5 * i - 1] for i, word in enumerate(map(list, {*map(tuple, found)}))]
    ),
    "min_length": st.integers(1, 9),
    "min_new_tokens": st.integers(1, 4),
    "forced_bos_token_id": tokens,
    "forced_eos_token_id": tokens,
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 4), st.floats(1.01, 1.5)),
    "suppress_tokens": some_tokens,
    "begin_suppress_tokens": some_tokens,
    "remove_invalid_values": st.just(True),
    "renormalize_logits": st.just(True),
}
SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0.2, 3),
    "top_k": st.integers(0, VOCAB + 5),
    "top_p": share,
    "min_p": share,
    "typical_p": share,
    "epsilon_cutoff": st.floats(0.001, 0.3),
    "eta_cutoff": st.floats(0.001, 0.3),
    "top_h": share,
}
BART = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCAB, encoder_attention_heads=1, decoder_attention_heads=1, forced_eos_token_id=None, **BART
    )
    return transformers.BartForConditionalGeneration(config)


def theirs(model: Any, settings: dict[str, Any], own: list[int], begin: int, source: list[int], scores: Any) -> Any:
    """transformers' processed scores of one sequence, which has nothing in front of it."""
    config = transformers.GenerationConfig(**{"top_k": None, "top_p": None, "temperature": None} | settings)
    config.max_length = LIMIT + begin
    if config.min_new_tokens is not None:  # as generate does
        config.min_length = config.min_new_tokens + begin
    config._eos_token_tensor = torch.tensor(settings["eos_token_id"])
    processors = GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=begin, encoder_input_ids=torch.tensor([source])
    )
    return processors(torch.tensor([own]), torch.tensor(scores)[None])[0].numpy()


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, list[list[int]], list[int], list[list[int]], np.ndarray]:
    """A ragged batch; its sequences, their prompts' lengths and sources; and scores."""
    prompts = draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=4))
    new = draw(st.integers(0, LIMIT - 1))
    sequences = [prompt + draw(st.lists(st.integers(0, 5), min_size=new, max_size=new)) for prompt in prompts]
    sources = [draw(st.lists(st.integers(0, 5), min_size=1, max_size=7)) for _ in prompts]
    longest = max(map(len, sequences))
    padded = np.array([[NO_TOKEN] * (longest - len(sequence)) + sequence for sequence in sequences])
    scores = np.random.default_rng(draw(st.integers(0, 2**32))).normal(
        0, draw(st.floats(0.1, 6)), (len(prompts), VOCAB)
    )
    last = np.full(len(prompts), new == LIMIT - 1)
    step = Step(padded, longest - new, last, np.arange(len(prompts)), [np.array(source) for source in sources])
    return step, sequences, [len(prompt) for prompt in prompts], sources, scores.astype(np.float32)


def check(model: Any, settings: dict[str, Any], drawn: Any) -> None:
    step, sequences, begins, sources, scores = drawn
    got = Rules.read(Options(settings, {}, VOCAB)).process(step, scores.copy())
    for row, (own, begin, source) in enumerate(zip(sequences, begins, sources, strict=True)):
        want = theirs(model, settings, own, begin, source, scores[row])
        exact = theirs(model, settings, own, begin, source, scores[row].astype(np.float64))
        # What an option makes infinite, and what others make of that, nobody can draw.
        assume(not (np.isposinf(want) | np.isnan(want)).any())
        # A token at the edge of a filter, where float32 and float64 differ, may fall on either side.
        assume((np.isneginf(want) == np.isneginf(exact)).all())
        np.testing.assert_allclose(got[row], want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ON)
@given(data=st.data(), drawn=steps(), eos=some_tokens)
def test_each_option(name: str, model: Any, data: st.DataObject, drawn: Any, eos: list[int]) -> None:
    check(model, {"eos_token_id": eos, name: data.draw(ON[name])}, drawn)


@pytest.mark.parametrize("name", SAMPLING)
@given(data=st.data(), drawn=steps())
def test_each_option_of_sampling(name: str, model: Any, data: st.DataObject, drawn: Any) -> None:
    check(model, {"eos_token_id": [2], "do_sample": True, "top_k": 0, name: data.draw(SAMPLING[name])}, drawn)


@given(
    settings=st.fixed_dictionaries({"eos_token_id": some_tokens, "do_sample": st.booleans()}, optional=ON | SAMPLING),
    drawn=steps(),
)
def test_options_together(model: Any, settings: dict[str, Any], drawn: Any) -> None:
    if not settings["do_sample"]:
        settings = {name: value for name, value in settings.items() if name not in SAMPLING}
    try:
        check(model, settings, drawn)
    except ValueError as error:  # all tokens are forbidden: transformers refuses some such settings, torch its entropy
        assume("Every token in" not in str(error) and "Expected parameter" not in str(error))
        raise
