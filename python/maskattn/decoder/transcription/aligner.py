"""When each token of a window is spoken, and the words that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import IntArray
from maskattn.decoder.memory import Memory
from maskattn.decoder.model import Transformer
from maskattn.decoder.transcription.results import Word
from maskattn.decoder.transcription.warping import first_frames
from maskattn.decoder.transcription.words import split
from maskattn.decoder.views import Pair, cross_attention

#: Frames of encoder positions, of all of Whisper's models.
_FILTER_WIDTH = 7


@dataclass(frozen=True)
class Aligner:
    """Aligns tokens with sound by the cross-attention of some heads.

    Args:
        heads: those that follow what is said.
        filter_width: of the median filter over their weights, in encoder positions; odd.
        first: id of the timestamp 0; the ids above it are timestamps, too.
        written: what each token writes, special tokens left out.
    """

    model: Transformer
    heads: Sequence[Pair]
    filter_width: int
    first: int
    written: Mapping[int, bytes]

    @classmethod
    def read(
        cls,
        model: Transformer,
        generation: Mapping[str, Any],
        config: Mapping[str, Any],
        first: int | None,
        written: Mapping[int, bytes],
    ) -> Aligner:
        """From generation_config.json and config.json; without ``alignment_heads`` those of the upper half of layers.

        Raises:
            TypeError, ValueError: a setting is not what it must be; the message names it.
        """
        assert model.decoder is not None
        sizes = model.decoder.sizes
        heads = generation.get("alignment_heads")
        if heads is None:
            heads = [(layer, head) for layer in range(sizes.layers // 2, sizes.layers) for head in range(sizes.heads)]
        pairs = check.head_pairs("alignment_heads in generation_config.json", heads, sizes.layers, sizes.heads)
        if not pairs:
            raise ValueError(
                "alignment_heads in generation_config.json must name at least one (layer, head), got none; "
                "leave it out for those of the upper half of layers"
            )
        width = config.get("median_filter_width", _FILTER_WIDTH)
        if not isinstance(width, int) or isinstance(width, bool) or width < 1 or width % 2 == 0:
            raise ValueError(f"median_filter_width must be an odd number, got {width!r:.40}; correct config.json")
        return cls(model, pairs, width, model.vocab if first is None else first, written)

    def boundaries(self, prompt: IntArray, tokens: Sequence[int], memory: Memory, heard: int) -> IntArray:
        """Where tokens begin and end, in encoder positions from the beginning of the window.

        The last one, which is the end token unless there was no room for it, takes no time.

        Args:
            prompt: what stood before the tokens.
            memory: of this window alone.
            heard: how many of its positions hold sound, at least 1.

        Returns:
            shape (len(tokens) + 1,): token ``t`` is spoken from ``[t]`` to ``[t + 1]``.
        """
        # An opening timestamp takes no time and is read off nothing that is said: its weights would be in the way.
        skipped = int(tokens[0] >= self.first)
        found = np.zeros(len(tokens) + 1, np.int64)
        if len(tokens) > skipped:
            [weights] = cross_attention(self.model, [prompt], [np.array(tokens)], memory, self.heads)
            found[skipped:-1] = first_frames(weights[:, skipped:, :heard], self.filter_width)
            found[-1] = found[-2]
        return found

    def words(
        self, tokens: Sequence[int], times: Sequence[float], log_probabilities: Sequence[float], *, spaces: bool
    ) -> tuple[Word, ...]:
        """The words of a segment.

        Args:
            times: shape (len(tokens) + 1,), seconds: where tokens begin and end.
            log_probabilities: shape (len(tokens),).
            spaces: whether spaces separate words.
        """
        places = [i for i, token in enumerate(tokens) if token < self.first and token in self.written]
        probabilities = np.exp(np.array(log_probabilities))
        return tuple(
            Word(
                start=times[places[part.first]],
                end=times[places[part.end - 1] + 1],
                text=part.text,
                probability=float(probabilities[places[part.first : part.end]].mean()),
            )
            for part in split([self.written[tokens[i]] for i in places], spaces=spaces)
        )
