"""The methods of ``Model`` that write: everything at once, or as it comes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.beams import BeamRules, search_steps
from maskattn.decoder.generate import Batch, Generated, result, steps
from maskattn.decoder.memory import Memory, Prefix
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import GenerationOptions, Options
from maskattn.decoder.requests import Ids, Progress, PromptIds, Requests, batches, is_one_list
from maskattn.decoder.rules import Rules
from maskattn.decoder.search import Search, find_search, goes_plainly, goes_token_by_token, with_state
from maskattn.decoder.shortlist import read_shortlist, with_shortlist
from maskattn.decoder.speculation import Page, Speculation, speculate
from maskattn.decoder.stopping import stop_strings
from maskattn.decoder.stream import Stream, Tokens, ahead, as_written
from maskattn.decoder.text.texts import Texts
from maskattn.decoder.views import look_at

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Job:
    """What a call of ``generate_ids`` is to do, checked.

    Attributes:
        sequences: what is read, ``prompts``: the decoder's inputs, ``limits``: the most new tokens; one per source.
        prefixes: ``prefix_embeddings``.
        options: what the call and the generation config ask for.
        speculation: what drafts tokens, if something does.
        forward: the model, or what a shortlist makes of it.
        search: what writes a batch, where nothing drafts and nobody watches.
    """

    sequences: list[Any]
    prompts: list[IntArray]
    prefixes: list[FloatArray] | None
    limits: list[int]
    rules: Rules
    options: Options
    speculation: Speculation | None
    forward: Transformer
    search: Search


class GenerationMethods:
    """Ids in, ids out. What is not told here is ``Model``'s."""

    _forward: Transformer
    _generation: Mapping[str, Any]
    _requests: Requests
    _texts: Texts

    def generate_ids(
        self,
        sources: Ids | FloatArray,
        *,
        prompt_ids: PromptIds | None = None,
        prefix_embeddings: Sequence[FloatArray] | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
        on_tokens: Callable[[Tokens], object] | None = None,
        return_log_probabilities: bool = False,
        return_cross_attention: bool | Sequence[tuple[int, int]] = False,
        **options: Unpack[GenerationOptions],
    ) -> list[Generated]:
        """Greedy search, sampling, beams and other ways: with equal options what ``transformers``' ``generate`` gives.

        What ``options`` do not say, the generation config says.

        Args:
            sources: token ids per sequence, lengths may differ: what an encoder reads, usually ending in the end token,
                or, for a decoder-only model, prompts. For Whisper log-mel features, shape (batch, mels, frames).
            prompt_ids: with an encoder, what the decoder begins with: one list for all sources, or one for each.
                Default: the decoder's start token.
            prefix_embeddings: for a decoder-only model, one float32 array (n, width) per source, n from 0 up: stands
                before the source's embeddings and is seen from everywhere (the ``[E; o]`` of arXiv:1910.10683's
                prefix language models), such as another encoder's output.
            batch_size: sequences that are computed together. Similar lengths share a batch, whatever their order.
            progress: called as ``progress(done, total)`` after each batch.
            on_tokens: called with the tokens that a source has got, as :meth:`stream_ids` gives them, when they come;
                an exception that it raises ends the work.
            return_log_probabilities: whether the results have them; see ``Generated``.
            return_cross_attention: whether the results have it, of all heads, or only of these, pairs (layer, head) as
                in ``cross_attention``. It is computed when all is written, so that steps take no longer.
            options: see ``GenerationOptions``; ``max_new_tokens`` is by default the generation config's, or its
                ``max_length`` (which counts the start token or the prompt), else 20; never more than the model has
                positions.

        Returns:
            New tokens per source, in the order of ``sources``: without start token or prompt, and up to what ended
            them, that one included if it came before ``max_new_tokens`` ran out. No source, no work: ``[]``.

        Raises:
            TypeError, ValueError: an argument is not as above; nothing has been computed then.
            NotImplementedError: something is asked for that would change the tokens and does not exist here.
        """
        job = self._job(sources, prompt_ids, prefix_embeddings, options)
        check.count("batch_size", batch_size)
        if on_tokens is not None:
            if not callable(on_tokens):
                raise TypeError(f"on_tokens must be a function of Tokens, got {type(on_tokens).__name__}; pass None")
            self._check_stream(job, log_probabilities=False)
        heads = None if isinstance(return_cross_attention, bool) else return_cross_attention
        pairs = None
        if return_cross_attention is not False:
            pairs = self._requests.heads("return_cross_attention", heads, "return_cross_attention")
        made: list[list[Generated]] = [[] for _ in job.sequences]
        for some in batches(job.sequences, batch_size, progress):
            batch = self._batch(job, some)
            written = self._write(job, batch, return_log_probabilities, on_tokens)
            if return_cross_attention is not False:
                for rank in zip(*written, strict=True):
                    look_at(self._forward, batch, rank, pairs)
            for i, ranked in zip(some, written, strict=True):
                made[i] = ranked
        return [ids for ranked in made for ids in ranked]

    def stream_ids(
        self,
        sources: Sequence[int] | IntArray | Ids | FloatArray,
        *,
        prompt_ids: PromptIds | None = None,
        prefix_embeddings: Sequence[FloatArray] | None = None,
        return_log_probabilities: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Stream[Tokens]:
        """What ``generate_ids`` gives, token by token::

            for tokens in model.stream_ids([231, 15, 0], max_new_tokens=64):
                written += tokens

        Args:
            sources: one, or several, which are written together; the ``source`` of what comes tells them apart.
            prompt_ids, prefix_embeddings, return_log_probabilities, options: as in ``generate_ids``. Beams may take
                tokens back: the ``retracted`` of what comes says how many.

        Returns:
            An iterator, which works while it is asked: leaving the loop ends the work, and so does its ``close`` from
            any thread.

        Raises:
            TypeError, ValueError, NotImplementedError: as ``generate_ids``; or beams are asked for
                ``num_return_sequences`` or log-probabilities, which are known at the end only.
        """
        several: Any = sources
        if self._is_one(sources):
            several = sources[None] if isinstance(sources, np.ndarray) else [sources]
        job = self._job(several, prompt_ids, prefix_embeddings, options)
        self._check_stream(job, return_log_probabilities)
        return Stream(self._streamed(job, return_log_probabilities))

    def _streamed(self, job: Job, log_probabilities: bool) -> Generator[Tokens, None, None]:
        if job.sequences:
            yield from self._work(job, self._batch(job, range(len(job.sequences))), log_probabilities)

    def _work(self, job: Job, batch: Batch, log_probabilities: bool) -> Generator[Tokens, None, list[list[Generated]]]:
        """Tells of tokens as they come. Returns as :meth:`_write`."""
        beams = BeamRules.read(job.options)
        if beams is None:
            work = steps(job.forward, batch, job.rules, log_probabilities=log_probabilities)
            return as_written(work, batch.numbers)
        search = search_steps(job.forward, batch, job.rules, beams, with_log_probabilities=log_probabilities)
        return ahead(search, batch.numbers)

    def _check_stream(self, job: Job, log_probabilities: bool) -> None:
        """Raises ValueError where tokens are not known before the end."""
        beams, returned = BeamRules.read(job.options), job.options.integer("num_return_sequences", 1) or 1
        if returned > 1:
            raise ValueError(
                f"num_return_sequences must be 1 in a stream or with on_tokens, got {returned}; use generate_ids "
                "without on_tokens"
            )
        if beams is not None and log_probabilities:
            raise ValueError(
                "return_log_probabilities must be False in a stream with num_beams above 1, got True; use generate_ids"
            )
        if job.speculation is not None or (beams is None and not goes_token_by_token(job.options)):
            raise ValueError(
                "penalty_alpha, assistant_model and prompt_lookup_num_tokens must be left out in a stream or with "
                "on_tokens, got one of them; use generate_ids without on_tokens"
            )

    def _write(
        self, job: Job, batch: Batch, log_probabilities: bool, on_tokens: Callable[[Tokens], object] | None
    ) -> list[list[Generated]]:
        """Per sequence what it became, best first."""
        if on_tokens is not None:
            return result(self._work(job, batch, log_probabilities), on_tokens)
        if job.speculation is not None:
            page, read = Page(batch), job.speculation.encode([job.sequences[i] for i in batch.numbers])
            drafter = job.speculation.drafter(job.forward, page, job.rules, read)
            branches = job.speculation.branches
            made = speculate(
                job.forward, page, job.rules, drafter, branches=branches, log_probabilities=log_probabilities
            )
            return [[ids] for ids in made]
        return job.search(batch, with_log_probabilities=log_probabilities)

    def _is_one(self, sources: object) -> bool:
        if self._requests.reads.sizes.mels:
            return getattr(sources, "ndim", 3) == 2
        return bool(is_one_list(sources)) and hasattr(sources, "__len__") and len(sources) > 0

    def _job(
        self,
        sources: Ids | FloatArray,
        prompt_ids: PromptIds | None,
        prefix_embeddings: Sequence[FloatArray] | None,
        options: Mapping[str, Any],
    ) -> Job:
        sequences = self._requests.sequences("sources", sources)
        prompts = self._requests.prompts(sequences, prompt_ids)
        prefixes = self._requests.prefixes(prefix_embeddings, len(sequences))
        settings = Options(self._generation, options, self._requests.writes.sizes.vocab)
        limits = self._requests.limits(prompts, prefixes, settings)
        grammar = self._texts.grammar(settings, limits)
        rules = Rules.read(settings, stop_strings(settings, self._texts.decoder), grammar)
        rules = with_state(self._forward, settings, rules, limits)
        speculation = Speculation.read(settings, self._forward)
        if speculation is not None:
            speculation.check(sources, prompts, prefixes)
            if not goes_plainly(settings, rules):
                raise ValueError(
                    "assistant_model and prompt_lookup_num_tokens must come with one sequence, greedy or drawn, got "
                    "another search; leave out num_return_sequences, penalty_alpha, dola_layers and guidance_scale"
                )
        shortlist = read_shortlist(settings, limits)
        forward = self._forward if shortlist is None else with_shortlist(self._forward, shortlist)
        before = [0] * len(prompts) if prefixes is None else [len(prefix) for prefix in prefixes]
        lengths = [n + len(prompt) for n, prompt in zip(before, prompts, strict=True)]
        search = find_search(forward, settings, rules, lengths, limits)
        return Job(sequences, prompts, prefixes, limits, rules, settings, speculation, forward, search)

    def _batch(self, job: Job, some: Sequence[int]) -> Batch:
        """The sequences ``some``, their sources encoded."""
        return Batch(
            [job.prompts[i] for i in some],
            [job.limits[i] for i in some],
            some,
            self._memory([job.sequences[i] for i in some]),
            Prefix([job.prefixes[i] for i in some]) if job.prefixes else None,
            [job.sequences[i] for i in some] if self._requests.encoder_reads_tokens else None,
        )

    def _memory(self, sequences: list[Any]) -> Memory | None:
        return None if self._forward.encoder is None else self._forward.encode(sequences)
