"""Text from tokens as they come: what is shown stays, no character is split, and in the end it is the text of all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from maskattn.decoder.stopping import common
from maskattn.decoder.stream import Piece, Tokens
from maskattn.decoder.text.graphemes import joined
from maskattn.decoder.text.protocol import Tokenizer

#: What stands in a text for a part of a character.
_PART = "\ufffd"
#: Of a character in UTF-8, without its last.
_MOST_PARTS = 3
#: After so many tokens the text begins further on, with so many behind it: decoding stays as cheap as for short texts.
_LONGEST, _KEPT = 128, 32


class IncrementalDecoder:
    """Shows the text of one sequence, a token late: only then is it known whether a character goes on.

    Args:
        stops: stop strings; what may become one is held back until it is known.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._start = 0  # of the window: the tokens that are decoded
        self._before = ""  # what has been shown of the text before the window
        self._shown = self._previous = ""  # what has been shown of its text; its text without the newest tokens
        # Tokens that are bytes become characters only as a whole run, which one more may still spoil.
        self._spoiler = tokenizer.token_id("<0xFF>")

    def add(self, tokens: Tokens) -> Piece:
        """What there is to show, which may be empty, now that ``tokens`` have come."""
        if tokens.retracted:
            del self._ids[-tokens.retracted :]
            self._start, self._before, self._shown, self._previous = 0, "", self._before + self._shown, ""
        self._ids += tokens
        text = self._decode(self._start)
        piece = self._show(text, self._settled(text))
        self._previous = text
        if len(self._ids) - self._start > _LONGEST:
            self._move_on(text)
        return piece

    def finish(self) -> Piece:
        """What is left: no token follows."""
        self._before, self._shown, self._start = "", self._before + self._shown, 0
        text = self._decode(0)
        return self._show(text, len(text))

    def _show(self, text: str, end: int) -> Piece:
        same = common(self._shown, text)
        if same < len(self._shown):
            same = _whole(text, _whole(self._shown, same))
        piece = Piece(text[same:end])
        piece.retracted = len(self._shown) - same
        self._shown = text[: max(same, end)]
        return piece

    def _settled(self, text: str) -> int:
        """How much of ``text`` no further token changes."""
        if text == self._previous:
            return 0
        parts = len(text) - len(text.rstrip(_PART))
        old = end = common(self._previous, text)
        if self._spoiler is not None and self._tokenizer.tokens(self._ids[-1:])[0].startswith("<0x"):
            end = min(end, common(text, self._decode(self._start, [self._spoiler])))
        else:
            parts = min(parts, _MOST_PARTS)
        for stop in self._stops:
            end = min(end, _begins(stop, text, old))
        known = text[: len(text) - parts]
        end = min(end, len(known))
        return _whole(known, end)

    def _decode(self, start: int, more: Sequence[int] = ()) -> str:
        return self._tokenizer.decode([*self._ids[start:], *more])

    def _move_on(self, text: str) -> None:
        """Let the window begin later, where its text then is the end of what it was."""
        for start in range(len(self._ids) - _KEPT, len(self._ids) - _KEPT // 2):
            shorter = self._decode(start)
            shown = shorter[: len(shorter) - (len(text) - len(self._shown))]
            if shown and text.endswith(shorter):
                self._before += self._shown[: len(self._shown) - len(shown)]
                self._start, self._shown, self._previous = start, shown, shorter
                return


def shower(tokenizer: Tokenizer, stops: Sequence[str] = (), source: int = 0) -> Callable[[Tokens | None], list[Piece]]:
    """Tokens of a source -> what there is to show; None: no token follows."""
    decoder = IncrementalDecoder(tokenizer, stops)

    def show(tokens: Tokens | None) -> list[Piece]:
        pieces = [] if tokens is None else [decoder.add(tokens)]
        if tokens is None or tokens.finished:
            pieces.append(decoder.finish())
        for piece in pieces:
            piece.source = source
        return [piece for piece in pieces if piece or piece.retracted]

    return show


def pieces(
    tokens: Iterable[Tokens], tokenizer: Tokenizer, stops: Sequence[str] = ()
) -> Generator[Piece | None, None, None]:
    """The pieces of texts; None where a token has come and there is nothing to show."""
    shown: dict[int, Callable[[Tokens | None], list[Piece]]] = {}
    for new in tokens:
        if new.source not in shown:
            shown[new.source] = shower(tokenizer, stops, new.source)
        found = shown[new.source](new)
        yield from found
        if not found:
            yield None
        if new.finished:
            del shown[new.source]
    for show in shown.values():
        yield from show(None)


def _begins(stop: str, text: str, old: int) -> int:
    """Where in ``text`` stands what may become ``stop``, or has become it behind ``old``; else the end of the text."""
    whole = text.find(stop, max(old - len(stop) + 1, 0))
    if whole >= 0:
        return whole
    return len(text) - next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _whole(text: str, end: int) -> int:
    """The last place up to ``end`` that is between two characters of ``text``, of which the last may be incomplete."""
    while end > 0 and (end == len(text) or joined(text, end)):
        end -= 1
    return end
