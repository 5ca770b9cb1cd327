"""``maskattn transcribe``: recordings in, text with times out."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from maskattn.cli import common

if TYPE_CHECKING:
    from maskattn.decoder import Segment

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
    transcribe.add_argument("--translate", action="store_true", help="into English")
    transcribe.add_argument("--timestamps", action="store_true", help="a line per segment, with its times")
    transcribe.add_argument("--fallback", action="store_true", help="again, at higher temperatures, what looks wrong")
    transcribe.add_argument("--max-new-tokens", type=int, metavar="N", help="per window; default: as many as fit")
    transcribe.set_defaults(run=_transcribe)


def _transcribe(options: argparse.Namespace) -> None:
    model = common.load_named(options, "of a model that hears, such as Whisper")
    with common.progress(len(options.recordings), many=1) as show:
        results = model.transcribe(
            options.recordings,
            language=options.language,
            task="translate" if options.translate else None,
            return_timestamps=options.timestamps or None,
            progress=show,
            max_new_tokens=options.max_new_tokens,
            **(_FALLBACK if options.fallback else {}),
        )
    for path, result in zip(options.recordings, results, strict=True):
        if options.json:
            common.print_json({"recording": path, **asdict(result)})
        elif options.timestamps:
            for segment in result.segments:
                print(_line(segment))
        else:
            print(result.text if result.text is not None else " ".join(map(str, result.tokens)))


def _line(segment: Segment) -> str:
    text = segment.text if segment.text is not None else " ".join(map(str, segment.tokens))
    return f"[{_clock(segment.start)} -> {_clock(segment.end)}] {text}"


def _clock(seconds: float) -> str:
    """1:02:03.45, hours only where there are any."""
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes:02}:{rest:05.2f}"
