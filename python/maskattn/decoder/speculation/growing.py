"""A sequence's drafts while an assistant makes them."""

from __future__ import annotations

import math

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.sampling import draw
from maskattn.decoder.speculation.chances import Chances

#: Tokens beside the stem that are less probable are not worth the row that they cost (docs/performance.md).
LEAST_PROBABLE = 0.05


class GrowingTree:
    """A stem that goes on, and tokens beside those of it, which do not.

    Such a token costs the assistant nothing, and the model hardly more than a row. It brings as many tokens as the next
    one of a branch that went on would, which would cost the assistant a row of each step besides.

    Args:
        branches: the most that there will be, the stem among them.
        wanted: how long the stem may become.

    Attributes:
        stem: the tokens of the first branch.
    """

    def __init__(self, branches: int, wanted: int) -> None:
        self._beside, self._wanted = branches - 1, wanted
        self.stem: list[int] = []
        self._chances: list[Chances] = []
        self._likely = 0.0  # the logarithm of the stem's probability
        self._others: list[
            tuple[float, int, int]
        ] = []  # the probability of a branch beside it, its last place and token

    def take_best(self, scores: FloatArray) -> None:
        """Go on with the highest of scores (vocab,)."""
        best = int(scores.argmax())
        if self._beside:
            among, place = scores.copy(), len(self.stem)
            total = float(scores[best]) + math.log(np.exp(scores - scores[best]).sum())
            among[best] = -np.inf
            for _ in range(self._beside):
                token = int(among.argmax())
                likely = math.exp(self._likely + float(among[token]) - total)
                if among[token] == -np.inf or likely < LEAST_PROBABLE:
                    break
                self._others.append((likely, place, token))
                among[token] = -np.inf
            self._likely += float(scores[best]) - total
        self.stem.append(best)

    def draw(self, scores: FloatArray, stream: np.random.Generator) -> None:
        """Go on with a draw by scores (vocab,), and draw what stands beside it, without replacement.

        How many are drawn depends on those before them alone, never on what they are themselves: else what is left when
        some are rejected would not be the model's distribution.
        """
        place, among, chances = len(self.stem), scores.copy(), Chances.of(scores)
        self._chances.append(chances)
        drawn = draw(among[None], [stream])
        self.stem.append(int(drawn[0]))
        left = 1 - chances.at(drawn)[0]
        a_place, others = -(-self._beside // self._wanted), len(chances.ids) - 1
        for _ in range(min(a_place, self._beside - len(self._others), others)):
            if left < LEAST_PROBABLE:
                break
            among[drawn] = -np.inf
            drawn = draw(among[None], [stream])
            left -= chances.at(drawn)[0]
            self._others.append((0.0, place, int(drawn[0])))

    def branches(self) -> list[IntArray]:
        """The stem, and what else is likeliest; none where nothing has been drafted."""
        ends = [(place, token) for _, place, token in self._chosen()]
        return [np.array([*self.stem[:place], *token]) for place, *token in [(len(self.stem),), *ends] if self.stem]

    def chances(self) -> list[list[Chances]]:
        """Of what the tokens of each branch were drawn from."""
        return [self._chances, *(self._chances[: place + 1] for _, place, _ in self._chosen())]

    def _chosen(self) -> list[tuple[float, int, int]]:
        return sorted(self._others, key=lambda other: -other[0])[: self._beside]
