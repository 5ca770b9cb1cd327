"""Random-weight Whisper checkpoints: from sound, the tokens and times of transformers, short and long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402
from maskattn.decoder.transcription.languages import CODES  # noqa: E402
from maskattn.speech import MelSettings, log_mel  # noqa: E402
from random_models import centre_head, randomize  # noqa: E402

END, START, LANGUAGES, TASKS = 120, 121, ("en", "de", "fr"), ("transcribe", "translate")
PREVIOUS, SILENCE, NO_TIMESTAMPS, VOCAB = 127, 128, 129, 181  # a timestamp for each 0.02 s of a second
SECOND, RATE = MelSettings(chunk_length=1), 16000
SPECIAL = dict(
    lang_to_id={f"<|{code}|>": 122 + i for i, code in enumerate(LANGUAGES)},
    task_to_id={task: 125 + i for i, task in enumerate(TASKS)},
    no_timestamps_token_id=NO_TIMESTAMPS, is_multilingual=True, prev_sot_token_id=PREVIOUS,
    max_initial_timestamp_index=20, suppress_tokens=[1, 2, *range(START, NO_TIMESTAMPS)],
    begin_suppress_tokens=[3, END], max_length=60,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(seed: int, **settings: Any) -> Any:
    """A model that hears a second at a time."""
    config = transformers.WhisperConfig(
        vocab_size=VOCAB, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=6, encoder_ffn_dim=60, decoder_ffn_dim=40, num_mel_bins=80, max_source_positions=50,
        max_target_positions=60, pad_token_id=END, bos_token_id=END, eos_token_id=END, decoder_start_token_id=START,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    randomize(model, seed)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 80, 100), dtype=np.float32))
    with torch.no_grad():
        inputs = torch.randint(2, VOCAB, (8, 40), generator=torch.Generator().manual_seed(seed))
        out = model(noise, decoder_input_ids=inputs, output_hidden_states=True)
    centre_head(model, out.decoder_hidden_states[-1])
    for name, value in {**SPECIAL, **settings}.items():
        setattr(model.generation_config, name, value)
    return model


def save(model: Any, path: Path) -> maskattn.Model:
    model.save_pretrained(path)
    transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(path)
    return maskattn.load(path)


def sounds(*seconds: float) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    made = [0.1 * rng.standard_normal(int(n * RATE)) * np.sin(np.arange(int(n * RATE)) / 900) for n in seconds]
    return [sound.astype(np.float32) for sound in made]


def reference(model: Any, recordings: Sequence[np.ndarray], **options: Any) -> list[list[Any]]:
    """Segments of each, from features that are padded to the longest, as transformers wants a batch of long ones."""
    features = [log_mel(sound, SECOND, samples=RATE) for sound in recordings]
    longest = max(one.shape[1] for one in features)
    inputs = torch.from_numpy(np.stack([np.pad(one, ((0, 0), (0, longest - one.shape[1]))) for one in features]))
    mask = torch.tensor([[1] * one.shape[1] + [0] * (longest - one.shape[1]) for one in features])
    made = model.generate(inputs, attention_mask=mask, return_segments=True, **options)
    return list(made["segments"])


def assert_same(got: Sequence[maskattn.Transcription], want: list[list[Any]], *, times: bool = True) -> None:
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert [list(one.tokens) for one in ours.segments] == [one["tokens"].tolist() for one in theirs]
        for name in ("start", "end") if times else ():
            found = [getattr(one, name) for one in ours.segments]
            # Where it counts frames of an odd window, transformers rounds 28.999999 down.
            np.testing.assert_allclose(found, [float(one[name]) for one in theirs], rtol=0, atol=0.021)
        assert ours.tokens == tuple(token for one in theirs for token in one["tokens"].tolist())


@pytest.mark.parametrize(("seed", "options"), [
    (0, {}), (1, {}), (3, {}), (4, {}), (0, {"max_new_tokens": 7}),
    (1, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}), (1, {"num_beams": 5}),
    (3, {"num_beams": 4, "length_penalty": 0.6, "early_stopping": True}),
])  # fmt: skip
def test_long(seed: int, options: dict[str, Any], tmp_path: Path) -> None:
    model = make(seed)
    ours, recordings = save(model, tmp_path), sounds(4.4, 2.07, 3.1)
    want = reference(model, recordings, return_timestamps=True, task="transcribe", **options)
    got = ours.transcribe(recordings, **options)
    assert_same(got, want)
    assert_same(ours.transcribe(recordings, batch_size=2, task="transcribe", **options), want)
    assert sum(len({*one.tokens}) for one in got) > 25
    assert all(len(one.segments) > 2 for one in got)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_short(seed: int, timestamps: bool, task: Any, tmp_path: Path) -> None:
    model = make(seed)
    ours, recordings = save(model, tmp_path), sounds(0.4, 1, 0.7)
    want = reference(model, recordings, return_timestamps=timestamps, task=task, language="german")
    for language in ("de", "German", "<|de|>", ["de"] * 3):
        got = ours.transcribe(recordings, task=task, return_timestamps=timestamps, language=language)
        assert_same(got, want, times=timestamps)  # without, segments begin anywhere
        assert [one.language for one in got] == ["de"] * 3
        assert got[0].language_probs is None


def test_languages(tmp_path: Path) -> None:
    recordings = sounds(0.4, 1, 0.7, 2.5)
    found = set()
    for seed in (0, 2, 5):
        model = make(seed)
        ours = save(model, tmp_path / str(seed))
        features = np.stack([log_mel(sound, SECOND, samples=RATE)[:, :100] for sound in recordings])
        want = model.detect_language(torch.from_numpy(features)).tolist()
        got = ours.detect_language(recordings, batch_size=3)
        assert [SPECIAL["lang_to_id"][f"<|{next(iter(probs))}|>"] for probs in got] == want  # type: ignore[index]
        with torch.no_grad():
            logits = model(torch.from_numpy(features), decoder_input_ids=torch.tensor([[START]] * 4)).logits[:, 0]
        for probs, row in zip(got, logits[:, 122:125].softmax(-1).numpy(), strict=True):
            np.testing.assert_allclose([probs[code] for code in LANGUAGES], row, rtol=0, atol=1e-5)
        heard = ours.transcribe(recordings)
        assert [one.language for one in heard] == [next(iter(probs)) for probs in got]
        for one, probs in zip(heard, got, strict=True):
            assert one.language_probs == pytest.approx(probs, abs=1e-5)
        found.update(want)
    assert len(found) > 1


def test_names_of_languages() -> None:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    assert CODES == TO_LANGUAGE_CODE


EN, DE = 122, 123
OLD = {"lang_to_id": None, "task_to_id": None, "is_multilingual": None}
FORCED = {"forced_decoder_ids": [[1, DE], [2, 126], [3, NO_TIMESTAMPS]]}


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize(("settings", "asked"), [
    ({}, {"task": "translate"}),
    ({}, {"language": "de"}),
    ({}, {"language": "english", "task": "translate"}),
    ({"forced_decoder_ids": [[1, None], [2, 125]]}, {}),
    ({"forced_decoder_ids": [[1, EN]], "task": "translate"}, {}),
    ({"language": "german", "task": "transcribe"}, {}),
    ({"language": "german", "task": "transcribe"}, {"language": "en"}),
    (FORCED, {}),
    (FORCED, {"language": "en"}),
    (FORCED, {"task": "transcribe"}),
    (FORCED | OLD, {}),
    ({"is_multilingual": False, "forced_decoder_ids": [[1, NO_TIMESTAMPS]]}, {}),
    ({"is_multilingual": False} | {name: None for name in ("lang_to_id", "task_to_id")}, {}),
])  # fmt: skip
def test_prompts(settings: dict[str, Any], asked: dict[str, Any], timestamps: bool, tmp_path: Path) -> None:
    model, sound = make(0, **settings), sounds(1)[0]
    for name in [name for name, value in {**SPECIAL, **settings}.items() if value is None]:
        delattr(model.generation_config, name)
    ours = save(model, tmp_path)
    prompts: list[list[int]] = []

    def note(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        prompts.append(ids[0].tolist())
        return scores

    ours.transcribe([sound], return_timestamps=timestamps, logits_processor=[note], **asked)

    def note_theirs(ids: Any, scores: Any) -> Any:
        prompts.append(ids[0].tolist())
        return scores

    features = torch.from_numpy(log_mel(sound, SECOND))[None]
    processors = transformers.LogitsProcessorList([note_theirs])
    count = len(prompts)
    model.generate(features, return_timestamps=timestamps, logits_processor=processors, **asked)
    assert prompts[0] == prompts[count]


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("previous", [PREVIOUS, None])
def test_condition_on_what_was_said(seed: int, previous: int | None, tmp_path: Path) -> None:
    """One at a time: in a batch transformers asks only whether the first recording has a past."""
    model = make(seed, prev_sot_token_id=previous)
    ours, recordings = save(model, tmp_path), sounds(5.2, 2.6)
    options = {"condition_on_prev_tokens": True, "max_new_tokens": 12}
    want = [reference(model, [sound], return_timestamps=True, task="transcribe", **options)[0] for sound in recordings]
    assert_same(ours.transcribe(recordings, **options), want)
    alone = ours.transcribe(recordings, max_new_tokens=12)
    assert [one.tokens for one in alone] != [tuple(t for s in one for t in s["tokens"].tolist()) for one in want]


#: So low that the draw takes the most probable token.
COLD = 1e-4


def between(values: list[float]) -> float:
    """Half of the windows are on either side, and none so near that rounding decides."""
    apart = np.unique(np.round(values, 6))
    middle = len(apart) // 2
    return float(apart[middle - 1] + apart[middle]) / 2


@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("names", [
    ("compression_ratio_threshold",), ("logprob_threshold",), ("compression_ratio_threshold", "logprob_threshold"),
    ("logprob_threshold", "no_speech_threshold"),
])  # fmt: skip
def test_fallback(seed: int, names: tuple[str, ...], tmp_path: Path) -> None:
    """Attempts at temperatures near 0 write the same again, so only decisions can differ."""
    model = make(seed)
    ours, recordings = save(model, tmp_path), sounds(5.2, 2.6)
    plain = [one for got in ours.transcribe(recordings) for one in got.segments]
    middle = {
        "compression_ratio_threshold": between([one.compression_ratio for one in plain]),
        "logprob_threshold": between([one.avg_logprob for one in plain]),
        "no_speech_threshold": between([one.no_speech_prob or 0 for one in plain]),
    }
    # transformers keeps scores where there is a threshold for them.
    options: dict[str, Any] = {"logprob_threshold": -100.0} | {name: middle[name] for name in names}
    want = [
        reference(model, [sound], return_timestamps=True, task="transcribe", temperature=(0.0, COLD), **options)[0]
        for sound in recordings
    ]
    got = ours.transcribe(recordings, temperatures=(0.0, COLD), **options)
    assert_same(got, want)
    # Scores that have been divided by such a temperature are large.
    hot = [[float(one["result"]["scores"][0].max()) > 1000 for one in theirs] for theirs in want]
    assert [[one.temperature == COLD for one in result.segments] for result in got] == hot
    assert 0 < sum(map(sum, hot)) < len(plain) or "no_speech_threshold" in names
    assert (sum(len(one.segments) for one in got) < len(plain)) == ("no_speech_threshold" in names)


@pytest.mark.parametrize(("temperature", "options"), [(0.0, {}), (COLD, {}), (0.0, {"num_beams": 3})])
def test_how_sure_it_was(
    temperature: float, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(1)
    ours, sound = save(model, tmp_path), sounds(1)[0]
    options = {"return_timestamps": True, "max_new_tokens": 9, **options}
    got = ours.transcribe([sound], temperatures=temperature, **options)[0].segments[0]
    found: dict[str, list[float]] = {"_retrieve_avg_logprobs": [], "_retrieve_compression_ratio": []}

    def watch(name: str, function: Callable[..., float]) -> None:
        def watched(*args: Any) -> float:
            found[name].append(float(function(*args)))
            return found[name][-1]

        monkeypatch.setattr(type(model), name, staticmethod(watched))

    for name in found:
        watch(name, getattr(model, name))
    features = torch.from_numpy(log_mel(sound, SECOND))[None]
    model.generate(
        features, task="transcribe", temperature=temperature, logprob_threshold=-50.0, compression_ratio_threshold=50.0,
        **options,
    )  # fmt: skip
    assert got.avg_logprob == pytest.approx(found["_retrieve_avg_logprobs"][0], abs=1e-4)
    assert got.compression_ratio == pytest.approx(found["_retrieve_compression_ratio"][0])
