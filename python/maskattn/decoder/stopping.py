"""Stop strings: texts that end a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.options import Options

#: Of a character in UTF-8, each of which may be a token.
_MOST_BYTES = 4
Decode = Callable[[Sequence[int]], str]


def stop_strings(options: Options, decoder: Callable[[], Decode]) -> Callable[[IntArray], bool] | None:
    """Tells of the ids of a sequence, prompt included, whether its last token has completed one of ``stop_strings``.

    Args:
        decoder: gives what makes texts of token ids, special tokens included; called only if it is needed.

    Raises:
        TypeError, ValueError: ``stop_strings`` is no text or list of texts, or holds an empty one; or there is no
            tokenizer.
        ImportError: the library that runs the tokenizer is not installed.
    """
    value = options.get("stop_strings")
    texts = [value] if isinstance(value, str) else options.items("stop_strings", "a str or a list of str")
    if not texts:
        return None
    if not all(isinstance(text, str) for text in texts):
        raise options.wrong("stop_strings", "a str or a list of str", TypeError)
    if not all(texts):
        raise options.wrong("stop_strings", "texts, none empty")
    try:
        to_text, longest = decoder(), max(map(len, texts))
    except ValueError as error:
        raise ValueError(f"stop_strings needs a tokenizer: {error}") from error

    def stopped(ids: IntArray) -> bool:
        # A token may stand for less than a character, so a text of n characters may take 4 n tokens; and the first
        # token's text may depend on standing first.
        tail = ids[ids.size - min(ids.size, 4 * longest + 1) :].tolist()
        text, before = to_text(tail), ""
        # Before the last token, or before the character that it completes: parts of one may spoil what stands before it.
        for back in range(1, _MOST_BYTES + 1):
            before = to_text(tail[:-back])
            if not before.endswith("\ufffd"):
                break
        old = _common(text, before)
        return any(stop in text and text.rindex(stop) + len(stop) > old for stop in texts)

    return stopped


def _common(a: str, b: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
