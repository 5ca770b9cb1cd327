"""From sound to text with times, by models that were trained as Whisper was (arXiv:2212.04356)."""
