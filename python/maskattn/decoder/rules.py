"""The rules of a search: what the options make of scores, which token is taken, and what ends a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskattn.decoder import processors, sampling
from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.forbidding import Forbid, Force
from maskattn.decoder.options import Options
from maskattn.decoder.processors import Processor, Step
from maskattn.decoder.state import DecoderState

if TYPE_CHECKING:
    from maskattn.decoder.generate import Batch
    from maskattn.decoder.model import Transformer

#: In the order in which ``transformers`` applies them.
_PROCESSORS: tuple[Callable[[Options], Processor | None], ...] = (
    processors.sequence_bias,
    processors.diversity_penalty,
    processors.encoder_repetition_penalty,
    processors.repetition_penalty,
    processors.no_repeat_ngrams,
    processors.encoder_no_repeat_ngrams,
    processors.bad_words,
    processors.min_length,
    processors.prefix_allowed,
    processors.forced_bos,
    processors.forced_eos,
    processors.finite,
    processors.growing_end,
    processors.suppressed,
    processors.suppressed_at_begin,
)
_SAMPLING: tuple[Callable[[Options], Processor | None], ...] = (
    sampling.temperature,
    sampling.top_h,
    sampling.top_k,
    sampling.top_p,
    sampling.min_p,
    sampling.typical_p,
    sampling.epsilon_cutoff,
    sampling.eta_cutoff,
)
#: Whether a sequence has ended, from its ids.
StopString = Callable[[IntArray], bool]
Criterion = Callable[[IntArray, FloatArray], BoolArray]
#: Of (model, batch, branches=...), see ``DecoderState``.
OpenState = Callable[..., DecoderState]


def plain_state(model: Transformer, batch: Batch, *, branches: bool = False) -> DecoderState:
    """What the model itself says."""
    return DecoderState(model, batch.prompts, batch.limits, batch.memory, batch.prefix, branches=branches)


@dataclass(frozen=True)
class Rules:
    """Options, ready to use.

    Attributes:
        eos_token_id: tokens that end a sequence.
        processors: applied to the scores one after the other.
        sample: draw, or take the highest score.
        seed: of the draws.
        stop: ends a sequence after the token that makes it True, if there is something to look for.
        criteria: the user's ones, of all sequences at once.
        open_state: reads the prompts of a batch; the state says what the model makes of the next token.
    """

    eos_token_id: tuple[int, ...]
    processors: tuple[Processor, ...]
    sample: bool
    seed: int | None
    stop: StopString | None
    criteria: tuple[Criterion, ...]
    open_state: OpenState = plain_state

    @classmethod
    def read(cls, options: Options, stop: StopString | None = None, grammar: Processor | None = None) -> Rules:
        """
        Args:
            grammar: of ``json_schema``, ``regex`` or ``grammar``; comes behind all other options but the user's own
                functions: nothing else may break it.

        Raises:
            TypeError, ValueError, NotImplementedError: an option is not as GenerationOptions says.
        """
        sample = options.flag("do_sample")
        made = [*(make(options) for make in _PROCESSORS), grammar]
        made += [processors.own_function(function) for function in options.functions("logits_processor")]
        # Checked in any case: a wrong temperature is an error also where it would not be used.
        drawing = [make(options) for make in _SAMPLING]
        made += drawing if sample else []
        made.append(sampling.renormalize(options))
        return cls(
            eos_token_id=options.ids("eos_token_id"),
            processors=tuple(processor for processor in made if processor is not None),
            sample=sample,
            seed=options.integer("seed"),
            stop=stop,
            criteria=tuple(options.functions("stopping_criteria")),
        )

    @property
    def leave_scores(self) -> bool:
        """Whether the most probable tokens are those that the model itself finds so, and nothing else is asked."""
        return not (self.processors or self.sample or self.criteria) and self.open_state is plain_state

    @property
    def only_forbid(self) -> bool:
        """As ``leave_scores``, but that some tokens may not come."""
        known = all(isinstance(processor, Forbid | Force) for processor in self.processors)
        return known and not (self.sample or self.criteria) and self.open_state is plain_state

    def forbidden(self, step: Step) -> list[set[int]] | None:
        """Where rules ``only_forbid``: the tokens that may not come, of each row; None: a row has certain ones."""
        found: list[set[int]] = [set() for _ in step.tokens]
        for processor in self.processors:
            if isinstance(processor, Forbid):
                for own, tokens in zip(found, processor.tokens(step), strict=True):
                    own.update(map(int, tokens))
            elif isinstance(processor, Force) and processor.rows(step).any():
                return None
        return found

    def process(self, step: Step, scores: FloatArray) -> FloatArray:
        """The scores (batch, vocab) by which the next token is chosen; ``scores`` may be changed."""
        # Scores of -inf are ordinary here, and so is what they make: log(0), 0 * inf, growth past float32.
        with np.errstate(all="ignore"):
            for processor in self.processors:
                scores = processor(step, scores)
        return scores

    def streams(self, sequences: Sequence[int], *, of_drafts: bool = False) -> list[np.random.Generator]:
        """Random numbers of each sequence, by the seed, its number, and how often it came; or others for its drafts."""
        if not self.sample:
            return []
        seed, streams = np.random.SeedSequence(self.seed).entropy, []
        times: Counter[int] = Counter()
        for i in sequences:
            key = (i, times[i], 1) if of_drafts else (i, times[i]) if times[i] else (i,)
            streams.append(np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key))))
            times[i] += 1
        return streams

    def stopped(self, step: Step, scores: FloatArray) -> BoolArray:
        """Shape (batch,): who ends with the last token of ``step`` by a stop string or by a function of the user's."""
        stopped = np.zeros(len(step.tokens), np.bool_)
        if self.stop is not None:
            stopped |= np.array([self.stop(step.own(row)) for row in range(len(step.tokens))])
        for criterion in self.criteria:
            found = np.asarray(criterion(step.tokens, scores))
            if found.shape != stopped.shape or found.dtype != np.bool_:
                raise TypeError(
                    f"stopping_criteria must return bools of shape {stopped.shape}, got {found.dtype} {found.shape}; "
                    "return one per sequence"
                )
            stopped |= found
        return stopped
