"""Transcribing without PyTorch: a tiny model with random weights, its arguments, and the files that it needs."""

from __future__ import annotations

import json
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import tiny_families
from maskattn.cli import main
from maskattn.decoder.transcription.segments import Cut, cut
from maskattn.decoder.transcription.tokens import SpeechTokens

RATE = 16000
#: 61 tokens: text below 1, the rest of it below 20, then special tokens, and timestamps of up to 0.6 s from 30 on.
GENERATION: dict[str, Any] = {
    "decoder_start_token_id": 2, "eos_token_id": 1, "no_timestamps_token_id": 29, "prev_sot_token_id": 27,
    "lang_to_id": {"<|en|>": 20, "<|de|>": 21}, "task_to_id": {"transcribe": 23, "translate": 24},
    "is_multilingual": True, "suppress_tokens": [2, *range(20, 29)], "begin_suppress_tokens": [1],
}  # fmt: skip


def save(path: Path, generation: dict[str, Any], **extractor: Any) -> Path:
    """A model that hears a second at a time, of 7 mel filters."""
    settings = tiny_families.config("whisper", max_source_positions=50)
    tiny_families.write(path, settings)
    (path / "generation_config.json").write_text(json.dumps(generation))
    (path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 7, "chunk_length": 1, **extractor}))
    return path


@pytest.fixture
def model(tmp_path: Path) -> maskattn.Model:
    return maskattn.load(save(tmp_path / "whisper", GENERATION))


def sounds(*seconds: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(int(n * RATE)).astype(np.float32) for n in seconds]


def test_a_recording_does_not_depend_on_the_others(model: maskattn.Model) -> None:
    recordings = sounds(0.3, 3.7, 1, 2.2, 1.5)
    together = model.transcribe(recordings, temperatures=(0.0, 0.8), logprob_threshold=-0.1, seed=3)
    assert any(segment.temperature == 0.8 for one in together for segment in one.segments)
    for batch_size in (1, 2):
        assert (
            model.transcribe(recordings, temperatures=(0.0, 0.8), logprob_threshold=-0.1, seed=3, batch_size=batch_size)
            == together
        )
    assert model.transcribe([]) == []


def test_each_window_is_encoded_once(model: maskattn.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of it: the language, silence, several temperatures."""
    encoded: list[int] = []
    encode = model._forward.encode
    monkeypatch.setattr(model._forward, "encode", lambda windows: encoded.append(len(windows)) or encode(windows))
    seen: list[tuple[int, int]] = []
    model.transcribe(
        sounds(1, 0.5), temperatures=(0, 0.5, 1), logprob_threshold=0.0, no_speech_threshold=0.999,
        suppress_tokens=range(20, 61), progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(200, 200)]
    assert encoded == [2]


def test_drafts_leave_a_transcription_as_it_is(model: maskattn.Model, tmp_path: Path) -> None:
    """Draws of the second attempt too, where drafts are looked up; and an assistant hears each window once."""
    recordings, options = sounds(0.3, 3.7, 1), {"temperatures": (0.0, 0.8), "logprob_threshold": -0.1, "seed": 3}
    want = model.transcribe(recordings, **options)
    assert model.transcribe(recordings, **options, prompt_lookup_num_tokens=4, num_draft_branches=3) == want
    greedy = model.transcribe(recordings)
    drafts: dict[str, Any] = {"assistant_model": model, "assistant_confidence_threshold": 0.0}
    assert model.transcribe(recordings, **drafts) == greedy
    assert model.transcribe(recordings, **drafts, batch_size=1) == greedy
    other = maskattn.load(tiny_families.write(tmp_path / "other", tiny_families.config("whisper")))
    with pytest.raises(ValueError, match=r"assistant_model must hear 7 mels in 100 frames, .* got 7 in 40"):
        model.transcribe(recordings, assistant_model=other)


def test_files_and_arrays_are_the_same(model: maskattn.Model, tmp_path: Path) -> None:
    sound = (sounds(1.2)[0] * 2**15).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(sound.tobytes())
    array = sound.astype(np.float64) / 2**15
    named, pathed, plain = model.transcribe([str(tmp_path / "a.wav"), tmp_path / "a.wav", array])
    assert named == pathed == plain
    assert named.tokens
    assert named.text is None  # there is no tokenizer


def test_silence_is_skipped(model: maskattn.Model) -> None:
    heard = model.transcribe(sounds(2.5))[0]
    assert heard.segments
    sure = min(segment.avg_logprob for segment in heard.segments)
    assert model.transcribe(sounds(2.5), no_speech_threshold=0.0)[0].segments == ()
    assert model.transcribe(sounds(2.5), no_speech_threshold=0.0, logprob_threshold=sure - 1)[0] == heard


def test_a_window_that_repeats_itself_is_written_again(model: maskattn.Model) -> None:
    options: dict[str, Any] = {"return_timestamps": False, "suppress_tokens": [i for i in range(61) if i not in (5, 6)]}
    [segment] = model.transcribe(sounds(1), **options)[0].segments
    assert set(segment.tokens) <= {5, 6}
    assert segment.compression_ratio > 1.5
    again = model.transcribe(sounds(1), temperatures=(0, 1.0), compression_ratio_threshold=1.5, seed=0, **options)
    assert {one.temperature for one in again[0].segments} == {1.0}


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"sources": "a.wav"}, TypeError, r"sources must be a list of paths and float arrays, got str; pass \[recording\]"),
    ({"sources": [np.zeros(400, np.int16)]}, TypeError, r"sources\[0\] must be a float array"),
    ({"sources": [np.zeros((2, 400), np.float32)]}, ValueError, r"sources\[0\] must have shape \(length,\)"),
    ({"sources": [np.full(400, np.nan)]}, ValueError, r"sources\[0\] must be finite"),
    ({"sources": ["missing.wav"]}, FileNotFoundError, r"missing\.wav"),
    ({"language": "latin"}, ValueError, r"language must be one that the model knows \(de, en\) .* got 'latin'"),
    ({"language": ["en", "de"]}, ValueError, "language must be one or one per source, got 2 for 1"),
    ({"language": 3}, TypeError, "language must be a str, None, or a list of them, got 3"),
    ({"task": "sing"}, ValueError, r"task must be one that the model knows \(transcribe, translate\), got 'sing'"),
    ({"temperatures": ()}, TypeError, "temperatures must be a number or several"),
    ({"temperatures": (0, "1")}, TypeError, "temperatures must be a number or several"),
    ({"temperatures": -1}, ValueError, "temperatures must be finite and at least 0, got -1"),
    ({"logprob_threshold": "low"}, TypeError, "logprob_threshold must be a number or None, got 'low'"),
    ({"return_timestamps": 1}, TypeError, "return_timestamps must be True, False or None, got 1"),
    ({"return_timestamps": False}, ValueError, r"return_timestamps must not be False for sources\[0\], .* 17600"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"do_sample": True}, TypeError, "options of transcribe must not have do_sample, .* pass temperatures above 0"),
    ({"num_return_sequences": 2}, TypeError, "options of transcribe must not have num_return_sequences"),
    ({"num_beams": 0}, ValueError, "num_beams must be at least 1, got 0"),
    ({"temperatur": 1}, TypeError, "options must be among those of GenerationOptions, got temperatur"),
    ({"top_p": 3.0}, ValueError, "top_p"),
])  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str, model: maskattn.Model) -> None:
    with pytest.raises(error, match=message):
        model.transcribe(**{"sources": sounds(1.1), **arguments})


@pytest.mark.parametrize(("changes", "message"), [
    ({"no_timestamps_token_id": None}, r"no_timestamps_token_id must be in generation_config\.json to transcribe"),
    ({"no_timestamps_token_id": 60}, "no_timestamps_token_id must be a token id below 60, got 60"),
    ({"eos_token_id": [1, 3]}, r"eos_token_id must be a token id below 61, got \[1, 3\]"),
    ({"lang_to_id": ["en"]}, "lang_to_id must map names to token ids"),
    ({"lang_to_id": {"<|en|>": 61}}, r"lang_to_id\['<\|en\|>'\] must be a token id below 61, got 61"),
    ({"forced_decoder_ids": [[2, 20]]}, r"forced_decoder_ids must be \[\[1, token\], \[2, token\], \.\.\.\]"),
    ({"language": 3}, "language must be a str, got 3"),
    ({"prev_sot_token_id": True}, "prev_sot_token_id must be a token id"),
    ({"num_return_sequences": 2}, r"num_return_sequences must be off in the generation config .*, got 2; take"),
    ({"stop_strings": ["x"]}, r"stop_strings must be off in the generation config to transcribe, got \['x'\]; look"),
])  # fmt: skip
def test_generation_configs_that_lie(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = maskattn.load(save(tmp_path, {**GENERATION, **changes}))
    with pytest.raises(ValueError, match=message):
        model.transcribe(sounds(1.1))


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"chunk_length": 2}, ValueError, "must give 100 frames of 7 mel filters, as config.json says, got 200 of 7"),
    ({"feature_size": 80}, ValueError, "got 100 of 80; take both files from the same model"),
    ({"dither": 0.5}, NotImplementedError, "dither must be 0.0"),
])  # fmt: skip
def test_extractors_that_lie(settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    model = maskattn.load(save(tmp_path, GENERATION, **settings))
    with pytest.raises(error, match=message):
        model.transcribe(sounds(1))


def test_the_extractor_may_stand_elsewhere_or_be_that_of_all(model: maskattn.Model, tmp_path: Path) -> None:
    want = model.transcribe(sounds(1))
    path = tmp_path / "whisper"
    content = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").unlink()
    assert maskattn.load(path).transcribe(sounds(1)) == want
    (path / "processor_config.json").write_text(json.dumps({"feature_extractor": {**content, "n_fft": 512}}))
    assert maskattn.load(path).transcribe(sounds(1)) != want


def test_models_that_do_not_hear(tmp_path: Path) -> None:
    for ask in (maskattn.load().transcribe, maskattn.load().detect_language):
        with pytest.raises(ValueError, match="this needs a model that hears, such as Whisper, got family marian"):
            ask(sounds(1))


def test_a_model_of_one_language(tmp_path: Path) -> None:
    settings = {**GENERATION, "is_multilingual": False}
    model = maskattn.load(save(tmp_path, settings))
    got = model.transcribe(sounds(1), task="transcribe")[0]
    assert (got.language, got.language_probs) == (None, None)
    with pytest.raises(ValueError, match="language must be None for a model without lang_to_id"):
        model.transcribe(sounds(1), language="en")
    with pytest.raises(ValueError, match=r"task must be one that the model knows \(transcribe\), got 'translate'"):
        model.transcribe(sounds(1), task="translate")
    with pytest.raises(ValueError, match=re.escape("detect_language needs lang_to_id")):
        model.detect_language(sounds(1))


@pytest.mark.parametrize(("tokens", "frames", "want", "step"), [
    # As in the paper: <|0.00|> a b <|0.10|><|0.10|> c <|0.20|> and nothing behind: the window is done.
    ([30, 5, 6, 35, 35, 7, 40], 100, [Cut(0, 5, (30, 5, 6, 35)), Cut(5, 10, (35, 7, 40))], 100),
    # A pair at the end: the next window begins there.
    ([30, 5, 35, 35], 100, [Cut(0, 5, (30, 5, 35, 35))], 10),
    # What follows a pair is cut off: heard again.
    ([30, 5, 35, 35, 7, 8], 100, [Cut(0, 5, (30, 5, 35, 35))], 10),
    ([30, 5, 6], 90, [Cut(0, 45, (30, 5, 6))], 90),
    ([32, 5, 6, 50], 90, [Cut(0, 20, (32, 5, 6, 50))], 90),
    ([], 90, [Cut(0, 45, ())], 90),
    # Without rules a model may write this: on it goes all the same.
    ([30, 30], 90, [Cut(0, 0, (30, 30))], 1),
])  # fmt: skip
def test_cut(tokens: list[int], frames: int, want: list[Cut], step: int) -> None:
    assert cut(tokens, 30, frames) == (want, step)


def test_prompts_of_old_configs() -> None:
    forced = {"forced_decoder_ids": [[1, 21], [2, 24], [3, 29]]}
    old = {name: value for name, value in GENERATION.items() if name not in ("lang_to_id", "task_to_id")} | forced
    tokens = SpeechTokens.read(old, {}, 2, 61)
    assert tokens.prompt(tokens.language_id(None), tokens.task_id(None), timestamps=False) == [2, 21, 24, 29]
    assert tokens.prompt(tokens.language_id(None), tokens.task_id("transcribe"), timestamps=True) == [2, 21, 24]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save(tmp_path / "whisper", GENERATION))
    recordings = []
    for i, sound in enumerate(sounds(2.4, 0.7)):
        recordings.append(str(tmp_path / f"{i}.wav"))
        with wave.open(recordings[-1], "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((sound * 2**15).astype("<i2").tobytes())
    want = maskattn.load(path).transcribe(recordings, language="german")
    assert main(["transcribe", "--model", path, "--language", "german", "--json", *recordings]) == 0
    for line, recording, one in zip(capsys.readouterr().out.splitlines(), recordings, want, strict=True):
        record = json.loads(line)
        assert record["recording"] == recording
        assert record["language"] == "de"
        assert [tuple(segment["tokens"]) for segment in record["segments"]] == [part.tokens for part in one.segments]
    assert main(["transcribe", "--model", path, "--language", "de", "--timestamps", recordings[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(want[0].segments)
    assert re.fullmatch(r"\[00:0\d\.\d\d -> 00:0\d\.\d\d\] [\d ]+", lines[0])
    assert main(["transcribe", "--model", path, str(tmp_path / "none.wav")]) == 1
    assert "none.wav" in capsys.readouterr().err
    assert main(["transcribe", recordings[0]]) == 1
    assert "--model must name a checkpoint" in capsys.readouterr().err
