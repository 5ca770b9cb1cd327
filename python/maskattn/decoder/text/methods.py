"""The methods of ``Model`` that take or give texts, over those that take ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskattn.decoder.arrays import FloatArray
from maskattn.decoder.options import GenerationOptions, Options
from maskattn.decoder.requests import Progress
from maskattn.decoder.stopping import stop_texts
from maskattn.decoder.stream import Piece, Stream
from maskattn.decoder.text.incremental import pieces
from maskattn.decoder.text.protocol import Tokenizer
from maskattn.decoder.text.texts import Texts

if TYPE_CHECKING:
    from typing_extensions import Unpack

Message = Mapping[str, Any]


class TextMethods:
    """Texts in, texts or scores out."""

    _texts: Texts
    #: ``Model``'s.
    generate_ids: Any
    stream_ids: Any
    _generation: Mapping[str, Any]
    score_ids: Any

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Read when first asked for; None if the checkpoint has none. The methods that take ids need none.

        Raises:
            ImportError: the library that runs it is not installed.
            ValueError: a file of it is broken.
        """
        return self._texts.tokenizer

    def generate(
        self,
        texts: Sequence[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[str]:
        """Write one text per text, special tokens dropped. Arguments and errors as in ``generate_ids``, and:

        Args:
            src_lang, tgt_lang: of a model that translates between many languages (mBART, M2M-100, NLLB): the codes of
                the languages of ``texts`` and of what shall be written, which becomes ``forced_bos_token_id``.
                Default: as the checkpoint's files say.

        Raises:
            TypeError: ``texts`` is not a list of str.
            ImportError: the library that runs the tokenizer is not installed.
            ValueError: the checkpoint has no tokenizer, a file of it is broken (the message names the file), or a
                language is not known.
        """
        sources = self._texts.sources("texts", texts, src_lang)
        if tgt_lang is not None:
            options["forced_bos_token_id"] = self._texts.language_id(tgt_lang)
        made = self.generate_ids(sources, batch_size=batch_size, progress=progress, **options)
        return [self._texts.need().decode(ids) for ids in made]

    def stream(
        self,
        texts: str | Sequence[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream[Piece]:
        """What ``generate`` writes, piece by piece; together the pieces are its text::

            for piece in model.stream("Where is the library?"):
                print(piece, end="", flush=True)

        A piece never ends inside a character, be it spelt in several tokens or with combining marks; so each comes
        when the next token does. What may become one of ``stop_strings`` is held back until it is known.

        Args:
            texts: one, or several, which are written together; the ``source`` of a piece tells them apart.
            src_lang, tgt_lang, options: as in ``generate``. Under beams a piece may take back what came before: the
                ``retracted`` of a piece says how many characters.

        Returns:
            An iterator, which works while it is asked: leaving the loop ends the work, and so does its ``close`` from
            any thread.

        Raises:
            TypeError, ValueError, NotImplementedError, ImportError: as ``generate`` and ``stream_ids``.
        """
        sources = self._texts.sources("texts", [texts] if isinstance(texts, str) else texts, src_lang)
        if tgt_lang is not None:
            options["forced_bos_token_id"] = self._texts.language_id(tgt_lang)
        return self._stream_texts(sources, options)

    def score(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[FloatArray]:
        """Log-probability of each token of ``targets``. As ``score_ids``, from texts; languages as in ``generate``.

        Targets are ``transformers``' labels (``text_target=``), the end token last where there is one. Without an
        encoder they are what follows the sources, with no special tokens but those spelt out in them.
        """
        ids = self._texts.sources("sources", sources, src_lang), self._texts.targets("targets", targets, tgt_lang)
        made: list[FloatArray] = self.score_ids(*ids, batch_size=batch_size, progress=progress)
        return made

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
        continue_final_message: bool = False,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> str:
        """The model's answer to a conversation, special tokens dropped.

        Args:
            messages, tools, documents, continue_final_message, template, variables: as in :meth:`chat_prompt`.
            options: as in ``generate_ids``, such as ``max_new_tokens``.

        Raises:
            TypeError, ValueError, ImportError: as :meth:`chat_prompt` and ``generate_ids``.
        """
        ids = self._chat_ids(
            messages, continue_final_message, tools=tools, documents=documents, template=template, variables=variables
        )
        answer: list[int] = self.generate_ids([ids], **options)[0]
        return self._texts.need().decode(answer)

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
        continue_final_message: bool = False,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream[Piece]:
        """The answer of :meth:`chat`, piece by piece as :meth:`stream` gives it; arguments and errors as there."""
        ids = self._chat_ids(
            messages, continue_final_message, tools=tools, documents=documents, template=template, variables=variables
        )
        return self._stream_texts([ids], options)

    def _chat_ids(self, messages: Sequence[Message], continues: bool, **options: Any) -> list[int]:
        return self.chat_ids(messages, add_generation_prompt=not continues, continue_final_message=continues, **options)

    def _stream_texts(self, sources: list[list[int]], options: Mapping[str, Any]) -> Stream[Piece]:
        tokens = self.stream_ids(sources, **options)
        stops = stop_texts(Options(self._generation, options, 0))
        return Stream(pieces(tokens, self._texts.need(), stops))

    def chat_ids(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """What the model reads of a conversation: the ids of :meth:`chat_prompt`, whose arguments it takes.

        Special tokens are those in the template's text, and no others. A message that spells a special token out has
        that token, too, as in ``transformers``: do not pass on what strangers wrote without taking them out.
        """
        return self._texts.chat_ids(self._texts.chat(messages, **options))

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as text: ``transformers``' ``apply_chat_template(..., tokenize=False)``.

        Args:
            messages: at least one ``{"role": ..., "content": ...}``; further keys are the template's business.
            tools: functions that the model may call, as JSON schemas.
            documents: texts that the answer may rest on, each ``{"title": ..., "text": ...}``.
            add_generation_prompt: end with what begins an answer.
            continue_final_message: leave the last message open, so that the model goes on with it; then
                ``add_generation_prompt`` must be False.
            template: the name of one of several templates; default: "tool_use" with tools, if there is one, else
                "default".
            variables: what else the template asks for, such as ``{"enable_thinking": False}``.

        Raises:
            ImportError: ``jinja2`` is not installed.
            TypeError: an argument holds what JSON cannot hold.
            ValueError: the checkpoint has no template, or the template refuses the messages.
        """
        return self._texts.chat(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template=template,
            variables=variables,
        )
