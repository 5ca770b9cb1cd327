"""The settings of generation: those of a generation config, and above them those of a call."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from maskattn.decoder.arrays import BoolArray, FloatArray, IntArray
from maskattn.decoder.phrases import Constraint

#: (ids so far, scores) -> scores; see ``GenerationOptions.logits_processor``.
LogitsProcessor = Callable[[IntArray, FloatArray], FloatArray]


class GenerationOptions(TypedDict, total=False):
    """Options of ``generate`` and ``generate_ids``, by the names and with the meaning that ``transformers`` gives them.

    What is not passed is as in the checkpoint's generation config; None there or here is the default. Of what each
    option does to the scores, ``transformers``' order is kept; every sequence counts its own length and past, so none
    depends on what else is in the batch.
    """

    #: The most new tokens; ``max_length`` counts the start token or the prompt as well. ``max_new_tokens`` comes first.
    max_new_tokens: int | None
    max_length: int | None
    #: No end token before so many tokens, with the prompt or without.
    min_length: int | None
    min_new_tokens: int | None
    #: Tokens that end a sequence.
    eos_token_id: int | Sequence[int] | None
    #: Texts that end a sequence as soon as it holds one; the tokens that made it stay. Needs the tokenizer.
    stop_strings: str | Sequence[str] | None
    #: ``f(ids, scores)`` -> (batch,) bool, asked after each token: True ends a sequence. ``scores`` are the processed;
    #: under beams and in contrastive search, where many candidates are asked about, zeros (batch, 1).
    stopping_criteria: Sequence[Callable[[IntArray, FloatArray], BoolArray]] | None
    #: Beam search with so many beams; 1, the default: greedy search, or sampling. With ``do_sample`` continuations are
    #: drawn, without replacement.
    num_beams: int | None
    #: How many sequences are returned for each source, one after the other: of beam search its best ones, best first,
    #: at most ``num_beams``; of sampling so many draws.
    num_return_sequences: int | None
    #: Of beam search: scores of whole sequences are divided by this power of their length. Default 1.
    length_penalty: float | None
    #: Of beam search: a source is done with as many whole sequences as beams (True), once better ones are unlikely
    #: (False, the default), or impossible ("never").
    early_stopping: bool | str | None
    #: Of beam search: a source collects ``num_beams * patience`` whole sequences, rounded, instead of ``num_beams``; as
    #: in CTranslate2 (arXiv:2204.05424). Default 1.
    patience: float | None
    #: Diverse beam search (arXiv:1610.02424): beams in so many groups, of which each pays ``diversity_penalty`` for a
    #: token as often as earlier groups have just taken it.
    num_beam_groups: int | None
    diversity_penalty: float | None
    #: Constrained beam search (arXiv:1804.06609): sequences of new tokens that must appear; of a list of them, one.
    #: ``constraints`` says the same by ``maskattn.PhrasalConstraint`` and ``maskattn.DisjunctiveConstraint``.
    force_words_ids: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]] | None
    constraints: Sequence[Constraint] | None
    #: Contrastive search (arXiv:2202.06417): of the ``top_k`` most probable tokens the one with the highest
    #: ``(1 - penalty_alpha) * probability - penalty_alpha * similarity``, the greatest cosine of its state and an
    #: earlier one.
    penalty_alpha: float | None
    #: DoLa (arXiv:2309.03883), for decoder-only models: by how much tokens have become more probable since an earlier
    #: layer, that of these which differs most from the last one: ``"low"``, ``"high"``, or layers, 0 the embeddings.
    dola_layers: str | Sequence[int] | None
    #: Classifier-free guidance (arXiv:2306.17806), for decoder-only models: log-probabilities become
    #: ``without + guidance_scale * (with - without)`` the prompt; "without" has its last token, or
    #: ``negative_prompt_ids`` instead, one list of token ids for all sources or one for each.
    guidance_scale: float | None
    negative_prompt_ids: Sequence[int] | IntArray | Sequence[Sequence[int] | IntArray] | None
    #: Draw tokens instead of taking the most probable one. Off by default.
    do_sample: bool | None
    #: Of the draws. Equal seeds give a source equal tokens whatever the batch size; None: other ones in each call.
    seed: int | None
    #: When sampling: scores are divided by it, so that below 1 the probable become more probable.
    temperature: float | None
    #: When sampling: only the ``top_k`` most probable tokens, 0: all. Default 50.
    top_k: int | None
    #: When sampling: only the most probable tokens that together reach this probability (arXiv:1904.09751).
    top_p: float | None
    #: When sampling: only tokens at least this many times as probable as the most probable one (arXiv:2407.01082).
    min_p: float | None
    #: When sampling: only tokens whose information is near what is expected, up to this mass (arXiv:2202.00666).
    typical_p: float | None
    #: When sampling: only tokens at least as probable as this, or as eta of it (arXiv:2210.15191).
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    #: When sampling: of the 100 most probable tokens the first that make up this share of the entropy.
    top_h: float | None
    #: Scores of tokens that have been written or read are divided by it, negative ones multiplied (arXiv:1909.05858).
    repetition_penalty: float | None
    #: The same for tokens that are not in the encoder's source.
    encoder_repetition_penalty: float | None
    #: No sequence of so many tokens twice, or none that is in the encoder's source; 0: off (arXiv:1705.04304).
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    #: Sequences of tokens that must not appear.
    bad_words_ids: Sequence[Sequence[int]] | None
    #: What is added to the score of a sequence's last token where the rest of it stands: {ids: bias} or [[ids, bias]].
    sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Sequence[Any]] | None
    #: The first new token behind a single start token; the last one before the limit.
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    #: The only tokens that are written, besides end tokens and forced ones: others are not even scored, which saves
    #: most of the time of a large vocabulary. Log-probabilities are then among these. As Marian's shortlists for
    #: translation. Not with ``json_schema``, ``regex`` and ``grammar``.
    shortlist: Sequence[int] | IntArray | None
    #: Tokens that are never written, or never first.
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    #: (start, factor): after ``start`` new tokens the end token's score grows by powers of ``factor``.
    exponential_decay_length_penalty: Sequence[float] | None
    #: ``f(sequence, ids)`` -> what may follow: of the source's number and its ids so far, 1-D (arXiv:2010.00904).
    prefix_allowed_tokens_fn: Callable[[int, IntArray], Sequence[int]] | None
    #: What is written is JSON of this schema (a dict, its text, or a pydantic model), a whole match of this regular
    #: expression, or a text of this grammar (Lark's syntax as llguidance takes it, or GBNF); one of the three at most.
    #: It ends in time: near the limit only tokens are allowed behind which the text can still be made whole, where a
    #: short way to an end is found. Needs ``maskattn[constraints]``, the tokenizer, and an end token.
    json_schema: Mapping[str, Any] | str | type | None
    regex: str | None
    grammar: str | None
    #: Functions of the ids so far, (batch, length) int64, and the scores, (batch, vocab) float32, which return scores;
    #: they come after all others but those of sampling. ``ids`` has -1 in front of prompts shorter than the longest.
    logits_processor: Sequence[LogitsProcessor] | None
    #: A smaller ``Model`` that drafts tokens, several of which this one checks in a pass: greedy tokens stay the same,
    #: draws their distribution (arXiv:2211.17192). It writes the same tokens, and has an encoder if this one has.
    assistant_model: Any
    #: The most tokens that it drafts at once; default, as of the next two: its generation config's, else 20.
    num_assistant_tokens: int | None
    #: "constant", the default, or "heuristic": 2 more after a draft that was right throughout, else 1 less. Counted by
    #: sequence and from anew in each call, which ``transformers`` calls "heuristic_transient".
    num_assistant_tokens_schedule: str | None
    #: A draft ends with a token that the assistant holds for less probable. Default 0.4; 0: off.
    assistant_confidence_threshold: float | None
    #: Draft up to so many tokens from what followed the last ones before, in the sequence or in the encoder's source.
    prompt_lookup_num_tokens: int | None
    #: How many last tokens are looked for, first the most. Default 2.
    max_matching_ngram_size: int | None
    #: In how many ways a draft may go on, which a pass checks as a tree: an assistant's likeliest alternatives to what
    #: it drafts, or several places that a lookup finds. Default 1.
    num_draft_branches: int | None
    #: NaN becomes 0, and infinities the largest numbers.
    remove_invalid_values: bool | None
    #: Processed scores become log-probabilities.
    renormalize_logits: bool | None


#: As in ``transformers``, where neither the call nor the generation config says otherwise.
_DEFAULTS: dict[str, Any] = {"top_k": 50}
#: Settings that would change the tokens and are not implemented, with the values that switch each off.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "watermarking_config": (),
    "assistant_ensemble_weight": (),
}


class Options:
    """Settings by name, checked as they are taken.

    Args:
        generation: the generation config.
        asked: what the call asks for.
        vocab: how many tokens the model can write.

    Raises:
        TypeError: ``asked`` has a name that is no option.
        NotImplementedError: a setting is on that would change the tokens and is not implemented.
    """

    def __init__(self, generation: Mapping[str, Any], asked: Mapping[str, Any], vocab: int) -> None:
        self.vocab = vocab
        self._generation, self._asked = generation, asked
        for name in asked:
            if name not in GenerationOptions.__annotations__:
                close = difflib.get_close_matches(name, GenerationOptions.__annotations__, 1)
                hint = f"did you mean {close[0]}?" if close else "see maskattn.GenerationOptions"
                raise TypeError(f"options must be among those of GenerationOptions, got {name}; {hint}")
        for name, off in _UNSUPPORTED.items():
            if (value := generation.get(name)) is not None and value not in off:
                raise NotImplementedError(
                    f"{name} must be off in the generation config, got {value!r:.60}, which is not implemented; "
                    "take it out of generation_config.json"
                )

    def get(self, name: str) -> Any:
        """The call's value, else the generation config's, else the default; None: there is none."""
        value = self._asked.get(name)
        value = self._generation.get(name) if value is None else value
        return _DEFAULTS.get(name) if value is None else value

    def asked(self, name: str) -> bool:
        """Whether the call has set it."""
        return self._asked.get(name) is not None

    def wrong(self, name: str, wanted: str, kind: type[Exception] = ValueError) -> Exception:
        """The refusal of what stands under ``name``; of a file's contents it is a ValueError in any case."""
        problem = f"{name} must be {wanted}, got {self.get(name)!r:.60}"
        if self.asked(name):
            return kind(f"{problem}; pass another {name}")
        return ValueError(f"{problem}; correct generation_config.json")

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool | np.bool_):
            raise self.wrong(name, "True or False", TypeError)
        return bool(value)

    def integer(self, name: str, low: int = 0) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise self.wrong(name, "an integer", TypeError)
        if value < low:
            raise self.wrong(name, f"at least {low}")
        return int(value)

    def number(self, name: str, wanted: str, fits: Callable[[float], bool]) -> float | None:
        """A finite number for which ``fits`` holds."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            raise self.wrong(name, "a number", TypeError)
        if not np.isfinite(value) or not fits(float(value)):
            raise self.wrong(name, wanted)
        return float(value)

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids: none, one, or a list."""
        value = self.get(name)
        return () if value is None else self.token_ids(name, [value] if isinstance(value, int | np.integer) else value)

    def token_ids(self, name: str, value: Any) -> tuple[int, ...]:
        """``value``, found under ``name``, as token ids of the model."""
        if not _is_list(value) or not all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in value):
            raise self.wrong(name, "token ids", TypeError)
        for token in value:
            if not 0 <= token < self.vocab:
                remedy = f"pass other {name}" if self.asked(name) else "correct generation_config.json"
                raise ValueError(f"{name} must hold token ids below {self.vocab}, got {token}; {remedy}")
        return tuple(int(token) for token in value)

    def items(self, name: str, wanted: str) -> list[Any]:
        """A list of things, by default empty."""
        value = self.get(name)
        if value is not None and not _is_list(value):
            raise self.wrong(name, wanted, TypeError)
        return [] if value is None else list(value)

    def functions(self, name: str) -> list[Callable[..., Any]]:
        """A list of callables; one alone is one of them."""
        value = self.get(name)
        value = [value] if callable(value) else value
        if value is not None and (not _is_list(value) or not all(map(callable, value))):
            raise self.wrong(name, "a list of functions", TypeError)
        return [] if value is None else list(value)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
