"""Conversations with a model: what ``Model`` has besides ``generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskattn.decoder.text.texts import Texts

Message = Mapping[str, Any]


class Conversation:
    """Answers to messages, by the checkpoint's chat template."""

    _texts: Texts
    #: ``Model.generate_ids``.
    generate_ids: Any

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
        continue_final_message: bool = False,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """The model's answer to a conversation, special tokens dropped.

        Args:
            messages, tools, documents, continue_final_message, template, variables: as in :meth:`chat_prompt`.
            options: as in ``generate_ids``, such as ``max_new_tokens``.

        Raises:
            TypeError, ValueError, ImportError: as :meth:`chat_prompt` and ``generate_ids``.
        """
        ids = self.chat_ids(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            template=template,
            variables=variables,
        )
        answer: list[int] = self.generate_ids([ids], **options)[0]
        return self._texts.need().decode(answer)

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
