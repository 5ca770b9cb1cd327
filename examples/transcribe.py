"""Speech recognition: what is said in recordings, when, and in which language.

    python examples/transcribe.py --model openai/whisper-tiny --timestamps interview.wav

Any checkpoint of Whisper will do; a tiny one that knows the digits comes from ``tiny_whisper.py``. Recordings may be of
any length; formats besides WAV, and sampling rates besides the model's, need the extra ``speech``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import maskattn

#: Tried in this order where a window looks wrong, with the thresholds of arXiv:2212.04356, section 4.5.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
THRESHOLDS = {"compression_ratio_threshold": 2.4, "logprob_threshold": -1.0, "no_speech_threshold": 0.6}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", metavar="FILE")
    parser.add_argument("--model", metavar="DIR", required=True, help="checkpoint directory, or owner/name on the Hub")
    parser.add_argument("--language", metavar="NAME", help="code or English name; default: it is detected")
    parser.add_argument("--translate", action="store_true", help="into English")
    parser.add_argument("--timestamps", action="store_true", help="a line per segment, with its times")
    parser.add_argument("--words", action="store_true", help="with the times of each word")
    parser.add_argument("--fallback", action="store_true", help="try higher temperatures where a window looks wrong")
    parser.add_argument(
        "--seed", type=int, help="of what is drawn at higher temperatures; default: another one each time"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object per recording")
    options = parser.parse_args(arguments)

    model = maskattn.load(options.model)
    results = model.transcribe(
        options.recordings,
        language=options.language,
        task="translate" if options.translate else None,
        return_timestamps=options.timestamps or None,
        word_timestamps=options.words,
        temperatures=TEMPERATURES if options.fallback else 0.0,
        seed=options.seed,
        **(THRESHOLDS if options.fallback else {}),
        progress=_progress if sys.stderr.isatty() else None,
    )
    for path, result in zip(options.recordings, results, strict=True):
        if options.json:
            print(json.dumps({"recording": path, **asdict(result)}, ensure_ascii=False))
            continue
        language = f" ({result.language})" if result.language else ""
        print(f"{path}{language}: {result.text}")
        if options.timestamps:
            for segment in result.segments:
                print(f"  {segment.start:8.2f} - {segment.end:8.2f}  {segment.text}")
        for word in (word for segment in result.segments for word in segment.words or ()):
            print(f"  {word.start:8.2f} - {word.end:8.2f}  {word.text.strip()} ({word.probability:.0%})")


def _progress(done: int, total: int) -> None:
    print(f"\r{100 * done // total} %", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
