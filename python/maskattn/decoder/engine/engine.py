"""Continuous batching, from outside."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from threading import Thread, current_thread
from typing import TYPE_CHECKING, Any

import numpy as np

from maskattn.decoder import check
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.engine.request import Request
from maskattn.decoder.engine.scheduler import Scheduler
from maskattn.decoder.engine.task import Task
from maskattn.decoder.generate import Batch, Generated, Writer
from maskattn.decoder.options import GenerationOptions, Options
from maskattn.decoder.requests import PromptIds
from maskattn.decoder.search import goes_plainly
from maskattn.decoder.stopping import stop_texts
from maskattn.decoder.stream import Piece, Tokens
from maskattn.decoder.text.incremental import shower

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from maskattn.decoder.api import Model
    from maskattn.decoder.text.methods import Message


class Engine:
    """Writes for many at once: requests come from any thread, and those that there are share each step::

        with maskattn.Engine(model) as engine:
            requests = [engine.submit(text, max_new_tokens=64) for text in texts]
            for piece in requests[0]:
                print(piece, end="", flush=True)
            answers = [request.result() for request in requests]

    A request gets the tokens that it gets alone, whatever else there is; its options are its own. It is read in chunks
    between the others' steps, joins them, and leaves when it ends. First come, first served: a request waits until
    there is room for all that it may become, and none overtakes it. What requests begin with in common is read once, by
    a decoder-only model, and remembered as long as there is room.

    Args:
        model: writes text; may be used as before meanwhile.
        max_batch: the most requests that are written together.
        max_tokens: room in the cache, for all together: a request takes what it may become, its prompt and its
            ``max_new_tokens``, in whole pages, and so does the output of an encoder that it reads. Memory is used as
            tokens come: per token and layer keys and values of all key heads, in float32, or bfloat16 where the weights
            are less than that.
        max_waiting: the most requests that wait for room.
        prefill: how many tokens of new requests are read between two steps. Fewer hold the others up less.
        page_size: tokens per page of the cache, a multiple of 16.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int = 64,
        max_tokens: int = 16384,
        max_waiting: int = 1024,
        prefill: int = 64,
        page_size: int = 64,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_waiting", max_waiting), ("prefill", prefill)):
            check.count(name, value)
        check.count("max_tokens", max_tokens)
        sizes = model._requests.writes.sizes
        self._model = model
        # One sequence of that capacity reserves the address space of all; nobody is in the cache yet.
        self._longest = min(max_tokens, sizes.positions or max_tokens)
        cache = model._forward.new_cache(-(-max_tokens // self._longest), self._longest, page_size=page_size)
        cache.reorder([])
        pages = max(max_tokens // page_size, -(-self._longest // page_size))
        self._scheduler = Scheduler(model._forward, cache, pages, max_batch, max_waiting, prefill)
        self._thread = Thread(target=self._scheduler.run, name="maskattn.Engine", daemon=True)
        self._thread.start()
        weakref.finalize(self, _stop, self._scheduler, self._thread)

    def submit(
        self,
        text: str,
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Request[Piece, str]:
        """Have a text written, at once or when it is its turn; from any thread.

        Args:
            text: as one of ``Model.generate``'s; languages and ``options`` as there.

        Returns:
            A handle: iterate it for pieces as ``Model.stream`` gives them, ask for its ``result()``, ``cancel()`` it.

        Raises:
            TypeError, ValueError, NotImplementedError, ImportError: as ``generate``; beams are asked for; or the
                request is longer than the cache.
            queue.Full: ``max_waiting`` requests wait already.
            RuntimeError: the engine is closed.
        """
        model = self._model
        (ids,) = model._texts.sources("texts", [text], src_lang)
        if tgt_lang is not None:
            options["forced_bos_token_id"] = model._texts.language_id(tgt_lang)
        return self._submit_text(ids, options)

    def submit_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
        continue_final_message: bool = False,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Request[Piece, str]:
        """As :meth:`submit`: the answer to a conversation, as ``Model.chat`` gives it; each turn reads what is new."""
        ids = self._model._chat_ids(
            messages, continue_final_message, tools=tools, documents=documents, template=template, variables=variables
        )
        return self._submit_text(ids, options)

    def submit_ids(
        self,
        source: Sequence[int] | IntArray | FloatArray,
        *,
        prompt_ids: PromptIds | None = None,
        return_log_probabilities: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Request[Tokens, Generated]:
        """As :meth:`submit`, of token ids (or log-mel features): one of ``Model.generate_ids``' sources."""
        sources: Any = source[None] if isinstance(source, np.ndarray) else [source]
        request: Request[Tokens, Generated] = Request(lambda: lambda new: [new], lambda made: made, self._cancelled)
        self._submit(request, sources, prompt_ids, return_log_probabilities, options)
        return request

    async def generate(self, text: str, **options: Any) -> str:
        """As :meth:`submit`, for event loops: the whole text. ``async for`` takes the pieces of what submit returns."""
        return await self.submit(text, **options)

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests are being read or written, and how many wait."""
        return self._scheduler.counts

    def close(self, *, cancel: bool = False) -> None:
        """Take no request more, and wait until those that there are have ended.

        Args:
            cancel: end them at once.
        """
        self._scheduler.close(cancel=cancel)
        if self._thread is not current_thread():
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.close(cancel=kind is not None)

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, kind: object, *exception: object) -> None:
        import asyncio

        await asyncio.to_thread(self.close, cancel=kind is not None)

    def _submit_text(self, ids: list[int], options: Mapping[str, Any]) -> Request[Piece, str]:
        model = self._model
        tokenizer, stops = model._texts.need(), stop_texts(Options(model._generation, options, 0))
        request: Request[Piece, str] = Request(lambda: shower(tokenizer, stops), tokenizer.decode, self._cancelled)
        self._submit(request, [ids], None, False, options)
        return request

    def _submit(
        self, request: Request[Any, Any], sources: Any, prompt_ids: Any, log_probabilities: bool, options: Any
    ) -> None:
        model = self._model
        job = model._job(sources, prompt_ids, None, options)
        shared = job.speculation is None and job.forward is model._forward
        if not shared or not goes_plainly(job.options, job.rules):
            raise ValueError(
                "options for an Engine must ask for one sequence, greedy or drawn, got beams, drafts or the like; "
                "use generate, or generate_ids, for num_beams, assistant_model, shortlist, penalty_alpha and such"
            )
        (sequence,), (prompt,), (limit,) = job.sequences, job.prompts, job.limits
        if (most := len(prompt) + limit - 1) > self._longest:
            raise ValueError(
                f"the prompt and its new tokens must be at most {self._longest} together, got {most}; pass a smaller "
                "max_new_tokens, or make an Engine with a larger max_tokens"
            )
        source_len = 0 if model._forward.encoder is None else len(sequence)
        if model._requests.reads.sizes.mels:  # of two frames
            source_len = -(-sequence.shape[1] // 2)
        self._scheduler.check_fits(most, source_len)
        read = [sequence] if model._requests.encoder_reads_tokens else None
        batch = Batch([prompt], [limit], [0], sources=read)
        writer = Writer(batch, job.rules, model._forward.vocab, log_probabilities=log_probabilities)
        self._scheduler.submit(Task(request, prompt.tolist(), most, sequence, source_len, writer))

    def _cancelled(self, request: Request[Any, Any]) -> None:
        self._scheduler.drop(request)


def _stop(scheduler: Scheduler, thread: Thread) -> None:
    """Nobody can submit any more."""
    scheduler.close(cancel=True)
    if thread is not current_thread():
        thread.join()
