"""Stop strings: texts that end a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.options import Options

Decode = Callable[[Sequence[int]], str]


def stop_strings(options: Options, decode: Decode | None, problem: str) -> Callable[[IntArray], bool] | None:
    """Tells of the ids of a sequence, prompt included, whether its last token has completed one of ``stop_strings``.

    Args:
        decode: token ids -> text with special tokens; None where there is no tokenizer.
        problem: what to tell who needs one.

    Raises:
        TypeError, ValueError: ``stop_strings`` is no text or list of texts, or holds an empty one; or there is no
            tokenizer.
    """
    value = options.get("stop_strings")
    texts = [value] if isinstance(value, str) else options.items("stop_strings", "a str or a list of str")
    if not texts:
        return None
    if not all(isinstance(text, str) for text in texts):
        raise options.wrong("stop_strings", "a str or a list of str", TypeError)
    if not all(texts):
        raise options.wrong("stop_strings", "texts, none empty")
    if decode is None:
        raise ValueError(f"stop_strings needs a tokenizer: {problem}")
    to_text, longest = decode, max(map(len, texts))

    def stopped(ids: IntArray) -> bool:
        # A token may stand for less than a character, so a text of n characters may take 4 n tokens; and the first
        # token's text may depend on standing first.
        tail = ids[ids.size - min(ids.size, 4 * longest + 1) :].tolist()
        text = to_text(tail)
        old = _common(text, to_text(tail[:-1]))
        return any(stop in text and text.rindex(stop) + len(stop) > old for stop in texts)

    return stopped


def _common(a: str, b: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
