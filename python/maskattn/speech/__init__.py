"""Sound for models that hear: audio files, and the log-mel features of Whisper."""

from maskattn.speech.audio import read_audio
from maskattn.speech.features import MelSettings, log_mel

__all__ = ["MelSettings", "log_mel", "read_audio"]
