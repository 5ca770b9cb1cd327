"""The methods of ``Model`` that take recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskattn.decoder.model import Transformer
from maskattn.decoder.options import GenerationOptions
from maskattn.decoder.requests import Progress, Requests
from maskattn.decoder.text import Texts
from maskattn.decoder.transcription.results import Transcription

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from maskattn.decoder.transcription.hearing import Hearing
    from maskattn.decoder.transcription.recording import Sound


class SpeechMethods:
    """Recordings in, transcriptions or languages out."""

    #: ``Model``'s.
    _texts: Texts
    config: Mapping[str, Any]
    _forward: Transformer
    _generation: Mapping[str, Any]
    _requests: Requests
    _directory: Path

    def transcribe(
        self,
        sources: Sequence[Sound],
        *,
        language: str | Sequence[str | None] | None = None,
        task: str | None = None,
        return_timestamps: bool | None = None,
        word_timestamps: bool = False,
        condition_on_prev_tokens: bool | None = None,
        temperatures: float | Sequence[float] = 0.0,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        batch_size: int = 16,
        progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Transcription]:
        """Write what is said in recordings, by a model such as Whisper: the tokens of ``transformers``' ``generate``.

        What is longer than a window of the model (30 s) is heard window by window, each of which begins where the last
        segment before it ended (arXiv:2212.04356, section 4.5).

        Args:
            sources: audio files (see ``maskattn.speech.read_audio``), or float arrays (length,) of one channel at the
                model's sampling rate. All are read before the first is heard.
            language: code or English name, one for all or one per source; None: the generation config's, or it is
                detected in the first window.
            task: ``transcribe`` or, into English, ``translate``. Default: the generation config's, else ``transcribe``.
            return_timestamps: whether segments have times of their own. Long recordings always have them.
            word_timestamps: whether segments have ``words``, whose times are read off the cross-attention of
                ``alignment_heads`` in the generation config, else of all heads in the upper half of layers, by dynamic
                time warping. Needs a tokenizer; ``return_timestamps`` is then True by default. Translations have words
                in another order than what is said: their times say little.
            condition_on_prev_tokens: whether each window is told what was said before it.
            temperatures: several are tried one after the other until an attempt at a window satisfies the thresholds;
                0 is greedy search, or beams with ``num_beams``; above, draws without beams.
            compression_ratio_threshold, logprob_threshold: an attempt that repeats itself more, or of which the model
                is less sure, fails (see ``Segment``). Default, as of the next: the generation config's, else none.
            no_speech_threshold: a window is skipped if it is less probable that somebody speaks, unless the model is
                sure of what it wrote by ``logprob_threshold``.
            batch_size: recordings that are heard together.
            progress: called as ``progress(done, total)`` after each window, in frames of features (10 ms).
            options: see ``GenerationOptions``; ``max_new_tokens`` are those of a window, by default as many as the
                model has positions for.

        Returns:
            One per source; see ``maskattn.Transcription``.

        Raises:
            FileNotFoundError, ImportError: see ``maskattn.speech.read_audio``; or the tokenizer's library is missing.
            TypeError, ValueError: an argument is not as above, a file is broken, or the model does not hear.
        """
        return self._hearing().transcribe(
            sources,
            language=language,
            task=task,
            return_timestamps=return_timestamps,
            word_timestamps=word_timestamps,
            condition_on_prev_tokens=condition_on_prev_tokens,
            temperatures=temperatures,
            thresholds={
                "compression_ratio_threshold": compression_ratio_threshold,
                "logprob_threshold": logprob_threshold,
                "no_speech_threshold": no_speech_threshold,
            },
            batch_size=batch_size,
            progress=progress,
            options=options,
        )

    def detect_language(
        self, sources: Sequence[Sound], *, batch_size: int = 16, progress: Progress | None = None
    ) -> list[dict[str, float]]:
        """Which language is spoken in the first window of recordings: probabilities by code, the highest first.

        Arguments and errors as in ``transcribe``; and ValueError, if the model knows of no languages.
        """
        return self._hearing().detect_language(sources, batch_size, progress)

    def _hearing(self) -> Hearing:
        from maskattn.decoder.transcription.hearing import Hearing

        tokenizer = self._texts.tokenizer
        return Hearing(
            model=self._forward,
            generation=self._generation,
            config=self.config,
            start=self._requests.start,
            directory=self._directory,
            decode=None if tokenizer is None else tokenizer.decode,
            written=lambda: self._texts.need().token_bytes(),
        )
