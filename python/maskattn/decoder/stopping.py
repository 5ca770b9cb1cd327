"""Stop strings: texts that end a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maskattn.decoder.arrays import IntArray
from maskattn.decoder.options import Options

#: Of a character in UTF-8, each of which may be a token.
_MOST_BYTES = 4
#: What stands in a text for a part of a character.
_PART = "\ufffd"
Decode = Callable[[Sequence[int]], str]


def stop_texts(options: Options) -> list[str]:
    """``stop_strings``. Raises TypeError, ValueError: it is no text or list of texts, or holds an empty one."""
    value = options.get("stop_strings")
    texts = [value] if isinstance(value, str) else options.items("stop_strings", "a str or a list of str")
    if not all(isinstance(text, str) for text in texts):
        raise options.wrong("stop_strings", "a str or a list of str", TypeError)
    if not all(texts):
        raise options.wrong("stop_strings", "texts, none empty")
    return texts


def stop_strings(options: Options, decoder: Callable[[], Decode]) -> Callable[[IntArray], bool] | None:
    """Tells of the ids of a sequence, prompt included, whether its last token has completed one of ``stop_strings``.

    Args:
        decoder: gives what makes texts of token ids, special tokens included; called only if it is needed.

    Raises:
        TypeError, ValueError: as :func:`stop_texts`; or there is no tokenizer.
        ImportError: the library that runs the tokenizer is not installed.
    """
    texts = stop_texts(options)
    if not texts:
        return None
    try:
        to_text, longest = decoder(), max(map(len, texts))
    except ValueError as error:
        raise ValueError(f"stop_strings needs a tokenizer: {error}") from error

    def stopped(ids: IntArray) -> bool:
        # A token may stand for less than a character, and parts of one may spoil what stands beside them in the text:
        # so there is none at the beginning, and what was there before is looked at without the character now ending.
        for more in range(_MOST_BYTES):
            # One more than a stop string may take, since a first token's text may depend on standing first.
            tail = ids[max(ids.size - _MOST_BYTES * longest - 1 - more, 0) :].tolist()
            text = to_text(tail)
            if not text.startswith(_PART):
                break
        for back in range(1, _MOST_BYTES + 1):
            before = to_text(tail[:-back])
            if not before.endswith(_PART):
                break
        old = common(text, before)
        return any(stop in text and text.rindex(stop) + len(stop) > old for stop in texts)

    return stopped


def common(a: str, b: str) -> int:
    """How many characters two texts begin with in common."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
