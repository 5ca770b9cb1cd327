"""``maskattn transcribe``: recordings in, text with times out."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from maskattn.cli import common

if TYPE_CHECKING:
    from maskattn.decoder import Segment, Transcription, Word

#: With ``--fallback``, as in arXiv:2212.04356, section 4.5.
_FALLBACK: dict[str, Any] = {
    "temperatures": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 2.4,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    transcribe = commands.add_parser("transcribe", help="write what is said in each recording, by a model like Whisper")
    transcribe.add_argument(
        "recordings", nargs="+", metavar="FILE", help="wav, or with the extra speech flac, mp3, ..."
    )
    common.add_model(transcribe, "required")
    transcribe.add_argument("--language", metavar="NAME", help="code or English name; default: it is detected")
    transcribe.add_argument(
        "--task", metavar="NAME", help="transcribe, or translate, into English; default: the model's"
    )
    transcribe.add_argument(
        "--translate", dest="task", action="store_const", const="translate", help="as --task translate"
    )
    transcribe.add_argument("--timestamps", action="store_true", help="a line per segment, with its times")
    transcribe.add_argument("--word-timestamps", action="store_true", help="a line per word, with its times")
    transcribe.add_argument(
        "--condition-on-prev-tokens", action="store_true", help="tell each window what was said before it"
    )
    transcribe.add_argument("--fallback", action="store_true", help="again, at higher temperatures, what looks wrong")
    transcribe.add_argument("--max-new-tokens", type=int, metavar="N", help="per window; default: as many as fit")
    transcribe.set_defaults(run=_transcribe)


def _transcribe(options: argparse.Namespace) -> None:
    model = common.load_named(options, "of a model that hears, such as Whisper")
    with common.progress(len(options.recordings), many=1) as show:
        results = model.transcribe(
            options.recordings,
            language=options.language,
            task=options.task,
            return_timestamps=options.timestamps or None,
            word_timestamps=options.word_timestamps,
            condition_on_prev_tokens=options.condition_on_prev_tokens or None,
            progress=show,
            max_new_tokens=options.max_new_tokens,
            **(_FALLBACK if options.fallback else {}),
        )
    for path, result in zip(options.recordings, results, strict=True):
        if options.json:
            common.print_json({"recording": path, **asdict(result)})
        elif options.word_timestamps:
            for word in (word for segment in result.segments for word in segment.words or ()):
                print(_line(word, word.text.strip()))
        elif options.timestamps:
            for segment in result.segments:
                print(_line(segment, _text(segment)))
        else:
            print(_text(result))


def _text(said: Segment | Transcription) -> str:
    return said.text if said.text is not None else " ".join(map(str, said.tokens))


def _line(spoken: Segment | Word, text: str) -> str:
    return f"[{_clock(spoken.start)} -> {_clock(spoken.end)}] {text}"


def _clock(seconds: float) -> str:
    """1:02:03.45, hours only where there are any."""
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes:02}:{rest:05.2f}"
