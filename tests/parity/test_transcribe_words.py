"""When random-weight Whispers heard their tokens, and the words that these make: as transformers has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from test_transcribe_text import make_model, make_tokenizer  # noqa: E402
from transformers.generation.utils import GenerateEncoderDecoderOutput  # noqa: E402
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter  # noqa: E402
from transformers.models.whisper.tokenization_whisper import (  # noqa: E402
    _collate_word_timestamps,
    _combine_tokens_into_words,
)

import maskattn  # noqa: E402
from maskattn.decoder.text.token_bytes import byte_level_characters  # noqa: E402
from maskattn.decoder.transcription.warping import median_filter, warp  # noqa: E402
from maskattn.decoder.transcription.words import split  # noqa: E402
from maskattn.speech import MelSettings, log_mel  # noqa: E402

SECOND, RATE = MelSettings(chunk_length=1), 16000
UPPER = [[1, head] for head in range(4)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bpe")


def make(tokenizer: Any, path: Path, heads: list[list[int]]) -> tuple[Any, maskattn.Model]:
    """Writes no parts of characters that are none in the end: transformers loses the words behind them."""
    model, special = make_model(tokenizer), set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    broken = [i for i in range(tokenizer.eos_token_id) if "\ufffd" in tokenizer.decode([i])]
    model.generation_config.suppress_tokens = sorted({*broken, *special})
    model.generation_config.alignment_heads = heads
    model.save_pretrained(path)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(chunk_length=1), tokenizer).save_pretrained(path)
    return model, maskattn.load(path)


def reference(model: Any, sound: np.ndarray, **options: Any) -> list[Any]:
    features = log_mel(sound, SECOND, samples=RATE)
    mask = np.arange(features.shape[1]) < -(-len(sound) // SECOND.hop_length)
    extract = type(model)._extract_token_timestamps

    def of_sound(*args: Any, num_frames: Any, **options: Any) -> Any:
        """A window may begin where there is only padding: transformers then counts frames from the other end."""
        return extract(model, *args, num_frames=num_frames.clamp(min=2), **options)

    model._extract_token_timestamps = of_sound
    made = model.generate(
        torch.from_numpy(features)[None], attention_mask=torch.from_numpy(mask.astype(np.int64))[None],
        task="transcribe", return_timestamps=True, return_token_timestamps=True, return_segments=True, **options,
    )  # fmt: skip
    return list(made["segments"][0])


def words_of(tokenizer: Any, segment: Any) -> tuple[list[str], list[tuple[float, float]], list[float]]:
    """Words of one of transformers' segments, their times, and the mean probabilities of their tokens."""
    tokens, stamps = segment["tokens"].tolist(), [round(time, 2) for time in segment["token_timestamps"].tolist()]
    places = [i for i, token in enumerate(tokens) if token < tokenizer.eos_token_id]
    spans, text = [(stamps[i - 1], stamps[i]) for i in places], [tokens[i] for i in places]
    words = _collate_word_timestamps(tokenizer, text, spans, None, False)
    result = segment["result"]
    first = segment["idxs"][0] - (len(result["sequences"]) - len(result["scores"]))
    scores = torch.stack(list(result["scores"][first:][: len(tokens)])).softmax(-1)
    likely = scores[torch.arange(len(tokens)), torch.tensor(tokens)].numpy()
    _, _, parts = _combine_tokens_into_words(tokenizer, text)
    means = [float(likely[[places[i] for i in part]].mean()) for part in parts]
    return [word["text"] for word in words], [word["timestamp"] for word in words], means


@pytest.mark.parametrize(("heads", "options"), [
    (UPPER, {}),
    ([[0, 3], [1, 0], [0, 1]], {}),
    (UPPER, {"max_new_tokens": 9}),
    (UPPER, {"num_beams": 3}),
    (UPPER, {"condition_on_prev_tokens": True, "max_new_tokens": 20}),
])  # fmt: skip
def test_words(heads: Any, options: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    """One at a time in transformers, which in a batch aligns what stands behind the ends of sequences, too."""
    model, ours = make(tokenizer, tmp_path / "model", heads)
    rng, count, inside = np.random.default_rng(0), 0, 0
    sounds = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (9000, 40000, 16000, 26123, 2000)]
    got = ours.transcribe(sounds, word_timestamps=True, batch_size=3, **options)
    for result, sound in zip(got, sounds, strict=True):
        want = reference(model, sound, **options)
        assert [list(one.tokens) for one in result.segments] == [one["tokens"].tolist() for one in want]
        for segment, theirs in zip(result.segments, want, strict=True):
            texts, spans, probabilities = words_of(tokenizer, theirs)
            assert segment.words is not None
            assert [word.text for word in segment.words] == texts
            assert [(round(word.start, 2), round(word.end, 2)) for word in segment.words] == spans
            if "num_beams" not in options:
                np.testing.assert_allclose([word.probability for word in segment.words], probabilities, atol=1e-5)
            count += len(texts)
            inside += sum(start < end for start, end in spans)
    assert count > 15
    assert inside > 5


@pytest.mark.parametrize("seed", range(4))
def test_boundaries(seed: int, tokenizer: Any, tmp_path: Path) -> None:
    """Of drawn tokens, which wander more than what such a model writes."""
    model, ours = make(tokenizer, tmp_path / "model", [*UPPER[seed:], [0, 2]])
    rng, heard = np.random.default_rng(seed), (100, 61, 30, 2)[seed]
    features = rng.standard_normal((80, 100)).astype(np.float32)
    prompt, new = rng.integers(0, 250, 4), rng.integers(0, 250, 40)
    new[0] = tokenizer.convert_tokens_to_ids("<|0.00|>")
    sequences = torch.from_numpy(np.concatenate([prompt, new]))[None]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        inputs = {"input_features": torch.from_numpy(features)[None], "decoder_input_ids": sequences[:, :-1]}
        weights = model(**inputs, output_attentions=True).cross_attentions
    output = GenerateEncoderDecoderOutput(sequences=sequences, cross_attentions=(weights,))
    stamps = model._extract_token_timestamps(
        output, model.generation_config.alignment_heads, num_frames=torch.tensor([heard]), num_input_ids=4
    )[0, 4:]
    hearing = ours._hearing()
    memory = hearing.model.encode([features])
    got = hearing._aligner().boundaries(prompt, new.tolist(), memory, heard // 2)
    assert got[0] == 0
    np.testing.assert_array_equal(got[1:], np.round(stamps.numpy() / 0.02))
    assert len(set(got.tolist())) >= heard // 10


def test_without_alignment_heads(tokenizer: Any, tmp_path: Path) -> None:
    _, ours = make(tokenizer, tmp_path / "named", UPPER)
    _, plain = make(tokenizer, tmp_path / "plain", UPPER)
    _, other = make(tokenizer, tmp_path / "other", [[0, 1]])
    del plain._generation["alignment_heads"]  # type: ignore[attr-defined]
    sound = (0.1 * np.random.default_rng(0).standard_normal(40000)).astype(np.float32)
    want = ours.transcribe([sound], word_timestamps=True)
    assert plain.transcribe([sound], word_timestamps=True) == want
    assert other.transcribe([sound], word_timestamps=True) != want


TEXTS = [
    " We hear what is said, again and again.",
    " \"Ja,\" sagte er (leise): «nein!» -- früh und spät... 3.14 ¿qué? it's o'clock - [x] {y}",
    "no space in front , but some before marks ! and  two\nlines\t",
    " 我们在这里。“是吗？”他说：「好」、再见！",  # noqa: RUF001
    " 今日は、いい天気ですね。 Emoji 👍🏽 and 🇩🇪🇫🇷 ok",
    "...", " (", "", " \" a",
]  # fmt: skip


@pytest.mark.parametrize("language", ["english", "chinese"])
@pytest.mark.parametrize("text", TEXTS)
def test_split(text: str, language: str, tokenizer: Any) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    words, _, places = _combine_tokens_into_words(tokenizer, tokens, language)
    pieces = [bytes(BYTES[character] for character in token) for token in tokenizer.convert_ids_to_tokens(tokens)]
    got = split(pieces, spaces=language == "english")
    assert "".join(part.text for part in got) == text
    if "👍" in text and language == "chinese":  # there parts of what is one character to a reader are words
        assert {"👍🏽", "🇩🇪", "🇫🇷"} <= {part.text.strip() for part in got}
        return
    assert [part.text for part in got] == words
    assert [list(range(part.first, part.end)) for part in got] == places


BYTES = {character: byte for byte, character in byte_level_characters().items()}


@pytest.mark.parametrize("seed", range(20))
def test_warp(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(-9, 9, rng.integers(1, 40, 2)) / 8  # so that some ways are equal
    rows, columns = _dynamic_time_warping(costs)
    np.testing.assert_array_equal(warp(costs), columns[np.diff(rows, prepend=-1) > 0])


@pytest.mark.parametrize("width", [1, 3, 7])
def test_median(width: int) -> None:
    values = np.random.default_rng(0).standard_normal((2, 5, 9))
    for length in (1, 3, 4, 9):
        want = _median_filter(torch.from_numpy(values[..., :length]), width).numpy()
        np.testing.assert_array_equal(median_filter(values[..., :length], width), want)
