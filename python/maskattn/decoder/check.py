"""Argument checks of the decoder: everything is refused here, in one form, before any work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray


def token_lists(name: str, value: object, vocab: int, longest: int) -> list[IntArray]:
    """A batch of token ids as arrays; ``longest`` 0: of any length.

    Raises:
        TypeError: not a list of lists (or 1-D arrays) of integers.
        ValueError: one is empty, longer than ``longest``, or holds an id outside [0, vocab).
    """
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list of lists of token ids, got {_kind(value)}; pass [[3, 1, 4]]")
    return [_token_list(f"{name}[{i}]", sequence, vocab, longest) for i, sequence in enumerate(value)]


def _token_list(name: str, value: object, vocab: int, longest: int) -> IntArray:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list of token ids, got {_kind(value)}; pass one list per sequence")
    if not len(value):
        raise ValueError(f"{name} must hold at least one token id, got an empty list; end it with the end token")
    if isinstance(value, np.ndarray):
        is_ids = value.ndim == 1 and value.dtype.kind in "iu"
    else:
        is_ids = all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in value)
    if not is_ids:
        raise TypeError(f"{name} must hold integers, got {value!r:.80}; convert it to a list of int")
    if longest and len(value) > longest:
        raise ValueError(f"{name} must have at most {longest} tokens, got {len(value)}; shorten it")
    if (low := min(value)) < 0 or (high := max(value)) >= vocab:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{name} must hold token ids in [0, {vocab}), got {wrong}; use the tokenizer that belongs to the model"
        )
    return np.asarray(value, np.int64)


def features(name: str, value: object, mels: int, longest: int) -> list[FloatArray]:
    """A batch of log-mel features, one array (mels, frames) per sequence.

    Raises:
        TypeError: not a float array.
        ValueError: not of shape (batch, ``mels``, frames) with 1 to ``longest`` frames, or not finite.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise TypeError(f"{name} must be a float array of log-mel features (batch, mels, frames), got {_kind(value)}")
    if value.ndim != 3 or value.shape[1] != mels or not 1 <= value.shape[2] <= longest:
        raise ValueError(
            f"{name} must have shape (batch, {mels}, frames) with 1 to {longest} frames, got {value.shape}; "
            "take the feature extractor that belongs to the model"
        )
    if not np.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return list(np.asarray(value, np.float32))


def embeddings(name: str, value: object, count: int, width: int) -> list[FloatArray]:
    """One array (n, ``width``) per sequence.

    Raises:
        TypeError: not a sequence of float32 arrays.
        ValueError: not ``count`` of them, or of other shapes.
    """
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        raise TypeError(f"{name} must be a list of float32 arrays (n, {width}), got {_kind(value)}")
    if len(value) != count:
        raise ValueError(f"{name} must have one array per source, got {len(value)} for {count} sources")
    for i, rows in enumerate(value):
        if not isinstance(rows, np.ndarray) or rows.dtype != np.float32:
            raise TypeError(f"{name}[{i}] must be a float32 array (n, {width}), got {_kind(rows)}")
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(
                f"{name}[{i}] must have shape (n, {width}), the width of the decoder, got {rows.shape}; "
                "project the encoder's output to that width"
            )
    return list(value)


def head_pairs(name: str, value: object, layers: int, heads: int) -> list[tuple[int, int]]:
    """Pairs (layer, head) as numbers from 0; negative ones count from the end.

    Raises:
        TypeError: not a list of pairs of integers.
        ValueError: there is no such layer or head.
    """
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list of pairs (layer, head), got {_kind(value)}; pass [(-1, 0)]")
    pairs = []
    for i, pair in enumerate(value):
        if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
            raise TypeError(f"{name}[{i}] must be a pair (layer, head), got {_kind(pair)}")
        for what, number, most in (("layer", pair[0], layers), ("head", pair[1], heads)):
            if not isinstance(number, int | np.integer) or isinstance(number, bool):
                raise TypeError(f"{name}[{i}] must hold integers, got {_kind(number)} for its {what}")
            if not -most <= number < most:
                raise ValueError(f"{name}[{i}] must name one of {most} {what}s, 0 to {most - 1}, got {number}")
        pairs.append((int(pair[0]) % layers, int(pair[1]) % heads))
    return pairs


def texts(name: str, value: object) -> list[str]:
    """Raises TypeError unless ``value`` is a list (or tuple) of str, ValueError if one holds half a character."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a list of str, got one str; pass [{value!r:.40}]")
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of str, got {_kind(value)}; pass list({name})")
    for i, text in enumerate(value):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] must be a str, got {_kind(text)}; use the *_ids method for token ids")
        unicode(f"{name}[{i}]", text)
    return list(value)


def unicode(name: str, text: str) -> None:
    """Raises ValueError if ``text`` holds a surrogate, which no encoding of Unicode has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start]
        raise ValueError(
            f"{name} must be Unicode text, got {wrong!r} at {error.start}; decode it otherwise, or take it out"
        ) from None


def text_pairs(name: str, value: Sequence[object]) -> list[tuple[str, str]]:
    """Raises TypeError unless every item of ``value`` is a pair of str."""
    for i, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(
                f"{name}[{i}] must be a pair of str like the others, got {_kind(pair)}; pass (first, second)"
            )
        for text in pair:
            unicode(f"{name}[{i}]", text)
    return [(pair[0], pair[1]) for pair in value if isinstance(pair, list | tuple)]


def same_length(sources: Sequence[object], targets: Sequence[object]) -> None:
    """Raises ValueError unless there is one target per source."""
    if len(sources) != len(targets):
        raise ValueError(
            f"targets must have one entry per source, got {len(targets)} for {len(sources)} sources; "
            "repeat a source that has several targets"
        )


def count(name: str, value: object, most: int | None = None, remedy: str = "pass at least 1") -> int:
    """Raises TypeError unless ``value`` is an integer, ValueError unless it is in [1, most]."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {_kind(value)}; {remedy}")
    if value < 1 or (most is not None and value > most):
        wanted = "at least 1" if most is None else f"in [1, {most}]"
        raise ValueError(f"{name} must be {wanted}, got {value}; {remedy}")
    return int(value)


def _kind(value: object) -> str:
    return f"{value!r:.40} ({type(value).__name__})"
