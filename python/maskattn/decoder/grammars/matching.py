"""Where texts stand in a grammar, and how each can still be brought to an end in time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.grammars.vocabulary import Vocabulary, need

#: States of texts that are kept; others are found again from their tokens, and are then the same.
_KEPT = 1024
#: How many tokens lie between two looks at how far the end is, while there is time.
_BETWEEN = 16
#: How many tokens are tried where time is short, the most probable first.
_TRIED = 16
#: How many tokens of a known way one token may have gone.
_STEPS = 4
#: The longest way to an end that is looked for.
_FARTHEST = 512


class State:
    """A text in a grammar.

    Attributes:
        matcher: llguidance's.
        length: its tokens.
        farthest: the longest way to an end that has been found on the way here.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: Any, length: int = 0, farthest: int = 0) -> None:
        self._vocabulary, self.matcher, self.length, self.farthest = vocabulary, matcher, length, farthest
        self._way: list[int] | None = None

    @property
    def whole(self) -> bool:
        """Whether the text may end here."""
        return bool(self.matcher.is_accepting())

    def is_late(self, left: int) -> bool:
        """Whether so few tokens are left that the way out is looked at before each of them."""
        return left <= 2 * (self.farthest + _BETWEEN)

    def allowed(self) -> BoolArray:
        """Shape (vocab,): the tokens that may follow."""
        return self._vocabulary.mask(self.matcher.compute_bitmask(), at_begin=not self.length)

    def after(self, token: int) -> State | None:
        """The state behind one token more; None: it can't follow."""
        state = State(self._vocabulary, self.matcher.deep_copy(), self.length + 1, self.farthest)
        written = token if self.length else int(self._vocabulary.first[token])
        if written >= 0 and not state.matcher.consume_token(written):
            return None
        if self._way:
            state._borrow(self._way)
        return state

    def way_out(self, most: int) -> list[int] | None:
        """Few tokens, up to ``most``, that make the text whole; None: none were found.

        At each step what closes things is taken first, and then what writes much, so that what must be there soon is.
        Where that does not end, the walk may be going in circles: then, where it has the same choice as before,
        something else is taken.
        """
        if self._way is None or len(self._way) > most:
            way = self._walk(most, again=True)
            way = self._walk(most, again=False) if way is None else way
            self._way = self._way if way is None else way
        return self._way if self._way is not None and len(self._way) <= most else None

    def _borrow(self, way: list[int]) -> None:
        """Most tokens change nothing about the way to the end, or have gone the first steps of it."""
        for gone in range(min(len(way), _STEPS), -1, -1):
            matcher = self.matcher.deep_copy()
            if matcher.try_consume_tokens(way[gone:]) == len(way) - gone and matcher.is_accepting():
                self._way = way[gone:]
                return

    def _walk(self, most: int, *, again: bool) -> list[int] | None:
        state, tokens, tried = self, list[int](), dict[bytes, list[int]]()
        last = b""
        while not state.whole:
            bits = state.matcher.compute_bitmask()
            if again:  # Of what changes nothing, such as a digit more, one is enough; not of what closes, as brackets.
                before = tokens[-1:] if bits == last and not self._vocabulary.closes(tokens[-1]) else []
            else:
                before = tried.setdefault(bits, [])
            last = bits
            token = self._vocabulary.closing(bits, at_begin=not state.length, tried=before)
            after = None if token is None or len(tokens) >= most else state.after(token)
            if token is None or after is None:
                return None
            before.append(token)
            tokens.append(token)
            state = after
        return tokens


class Follower:
    """Follows the texts of a call, which may be continued in any order, and from anywhere.

    Args:
        grammar: as llguidance takes it, known to be right.
        tried: how many tokens are kept, if they can be, where time is short: the most probable ones.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: str, tried: int = _TRIED) -> None:
        matcher = need().LLMatcher(vocabulary.core, grammar, log_level=0)
        self._root, self._tried = _look(State(vocabulary, matcher)), tried
        #: By the limit of a text and its tokens.
        self._states: OrderedDict[tuple[int, tuple[int, ...]], State | None] = OrderedDict()

    def allowed(self, ids: tuple[int, ...], left: int, scores: FloatArray) -> tuple[BoolArray, bool]:
        """What may follow the tokens ``ids`` of a text.

        Args:
            left: how many tokens the text may still get.
            scores: shape (vocab,): what is probable is kept where time is so short that not all can be looked at.

        Returns:
            shape (vocab,); and whether the text may end, as one must that is not of the grammar.
        """
        state = self._find(ids, len(ids) + left)
        if state is None:  # Such as a beam that goes on only because there are no others.
            return np.zeros(len(scores), np.bool_), True
        allowed = state.allowed()
        if state.is_late(left):
            allowed = self._in_time(state, allowed, left, scores)
        return allowed, state.whole

    def _find(self, ids: tuple[int, ...], limit: int) -> State | None:
        """The state behind ``ids``; what is not kept of the way there is walked again.

        It depends on these two alone, since what a state knows of its way out is found on the way to it, by rules that
        look at nothing else: so neither the batch nor what is kept shows in the text.
        """
        known = next((n for n in range(len(ids), 0, -1) if (limit, ids[:n]) in self._states), 0)
        state = self._states[limit, ids[:known]] if known else self._root
        for n in range(known, len(ids)):
            state = None if state is None else state.after(ids[n])
            if state is not None and state.length % _BETWEEN == 0:
                _look(state)
            if state is not None and state.is_late(limit - state.length):
                state.way_out(limit - state.length)
            self._states[limit, ids[: n + 1]] = state
            if len(self._states) > _KEPT:
                self._states.popitem(last=False)
        return state

    def _in_time(self, state: State, allowed: BoolArray, left: int, scores: FloatArray) -> BoolArray:
        """Those of ``allowed`` behind which a text can be made whole in time; all, where it can't be in any case."""
        way = state.way_out(left)
        if way is not None and len(way) + state.farthest + _BETWEEN < left:
            return allowed  # One token does not lead so far away.
        possible: IntArray = np.flatnonzero(allowed)
        kept = np.zeros_like(allowed)
        for token in possible[np.argsort(-scores[possible], kind="stable")[:_TRIED]].tolist() if left > 0 else []:
            after = state.after(token)
            kept[token] = after is not None and after.way_out(left - 1) is not None
            if kept.sum() == self._tried:
                break
        if not kept.any() and not state.whole:
            if not way:
                return allowed
            kept[way[0]] = True
        return kept


def _look(state: State) -> State:
    """Note how far the end is."""
    state.farthest = max(state.farthest, len(state.way_out(_FARTHEST) or []))
    return state
