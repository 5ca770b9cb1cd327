"""Conversations as text, by the templates that checkpoints bring along: Jinja programs from strangers, sandboxed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from maskattn.decoder.checkpoint import read_json
from maskattn.decoder.text.protocol import need

#: Where a single template is, the first counts; further ones by name are in the folder.
_FILE, _FOLDER, _CONFIG, _JSON = (
    "chat_template.jinja", "additional_chat_templates", "tokenizer_config.json", "chat_template.json"
)  # fmt: skip
#: Marks where the last message ends that a model shall go on with; templates may trim the space.
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
#: Names under which a message may hold reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplates:
    """Templates by name ("default" is the one without a name), and the special tokens that they may write.

    Attributes:
        source: the file that they are from.
    """

    templates: dict[str, str]
    tokens: dict[str, str]
    source: str

    @classmethod
    def read(cls, directory: Path, tokens: dict[str, str]) -> ChatTemplates:
        """From a checkpoint's files.

        Raises:
            ValueError: no file has a template, or one is broken.
        """
        found = cls.find(directory, tokens)
        if found is None:
            raise ValueError(
                f"chat_template must be in {_CONFIG} or {_FILE} in {str(directory)!r}, got none; use a checkpoint that "
                "was trained on conversations, or write the prompt and use generate"
            )
        return found

    @classmethod
    def find(cls, directory: Path, tokens: dict[str, str]) -> ChatTemplates | None:
        """As :meth:`read`; None if no file has a template."""
        files = {"default": directory / _FILE} if (directory / _FILE).is_file() else {}
        files |= {path.name.removesuffix(".jinja"): path for path in sorted((directory / _FOLDER).glob("*.jinja"))}
        if files:
            return cls({name: _text(path) for name, path in files.items()}, tokens, next(iter(files.values())).name)
        for name in (_CONFIG, _JSON):
            value = read_json(directory, name).get("chat_template") if (directory / name).is_file() else None
            if value is not None:
                return cls(_by_name(value, name), tokens, name)
        return None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, as ``transformers``' ``apply_chat_template(..., tokenize=False)`` writes it.

        Raises:
            TypeError, ValueError: an argument is not as ``Model.chat_prompt`` says, or the template refuses it.
        """
        chat = [_aliased(message) for message in _messages(messages)]
        if continue_final_message and add_generation_prompt:
            raise ValueError(
                "continue_final_message must be False with add_generation_prompt, got both; one goes on with the last "
                "message and the other begins a new one"
            )
        name, program = self._choose(template, tools)
        given = {
            "tools": None if tools is None else _plain("tools", tools),
            "documents": None if documents is None else _plain("documents", documents),
            "add_generation_prompt": add_generation_prompt,
            **self.tokens,
            **_plain("variables", variables or {}),
        }
        last = _mark(chat[-1], program) if continue_final_message else ""
        environment = self._environment
        import jinja2

        try:
            text: str = environment.from_string(program).render(**given, messages=chat)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise ValueError(
                f"messages must be what the chat template {name!r} of {self.source} accepts, got "
                f"{type(error).__name__}: {str(error)[:200]}; correct the messages, or the template"
            ) from error
        return _cut(text, last) if continue_final_message else text

    def _choose(self, name: str | None, tools: object) -> tuple[str, str]:
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise ValueError(f"template must be one of {', '.join(self.templates)}, as {self.source} has, got {name!r}")
        return name, self.templates[name]

    @cached_property
    def _environment(self) -> Any:
        return _sandbox()


def _sandbox() -> Any:
    """Jinja as templates of the Hub expect it, with no way to Python's internals."""
    need("jinja2")
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}`` marks what a model writes, for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Plain(Namespace):
        """A ``namespace`` whose attributes are not Python's own."""

        def __init__(*arguments: Any, **attributes: Any) -> None:
            self, *rest = arguments
            made = dict(*rest, **attributes)
            for name in made:
                Plain.check(name)
            Namespace.__init__(self, made)

        def __setitem__(self, name: str, value: Any) -> None:
            Plain.check(name)
            super().__setitem__(name, value)

        @staticmethod
        def check(name: object) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a namespace must have attributes without a leading underscore, got {name!r}")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *arguments, **items: dict(*arguments, **items),
        "namespace": Plain,
    }
    return environment


def _messages(messages: object) -> list[dict[str, Any]]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(
            f'messages must be a list of {{"role": ..., "content": ...}}, got {messages!r:.40}; '
            'pass [{"role": "user", "content": text}]'
        )
    if not messages:
        raise ValueError("messages must hold at least one message, got none")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f'messages[{i}] must be {{"role": ..., "content": ...}}, got {message!r:.40}')
        if not isinstance(message.get("role"), str):
            raise ValueError(f'messages[{i}] must have a "role", got {message!r:.60}')
    # A missing key is something that templates look for; None is what they stumble over.
    return [{k: _plain(f"messages[{i}]", v) for k, v in m.items() if v is not None} for i, m in enumerate(messages)]


def _plain(name: str, value: Any) -> Any:
    """A copy in JSON's types: other objects have methods that the sandbox does not know."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(name, key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    raise TypeError(f"{name} must hold what JSON can hold, got {value!r:.40} ({type(value).__name__}); convert it")


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark(message: dict[str, Any], program: str) -> str:
    """Put the mark behind the content of ``message``, and return that content."""
    content = message.get("content")
    blocks = [block for block in content if "text" in block] if isinstance(content, list) else []
    if "content" not in program or not (isinstance(content, str) or blocks):
        raise ValueError("continue_final_message must come with a content in the last message, got none to go on with")
    holder, key = (blocks[-1], "text") if blocks else (message, "content")
    text: str = holder[key]
    holder[key] = text + _MARK
    return text


def _cut(text: str, last: str) -> str:
    """The conversation up to the end of its last message, without the mark."""
    mark = _MARK.strip()
    if mark not in text or last.strip() not in text:
        raise ValueError("continue_final_message must come with a template that keeps the last message, got another")
    at = text.rindex(mark)
    return text[:at] if text[at : at + len(_MARK)] == _MARK else text[:at].rstrip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} must be UTF-8 text, got {error}; download it again") from error


def _by_name(value: object, source: str) -> dict[str, str]:
    """One template, or templates with names as a list of objects or as one object."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    named = {"default": value} if isinstance(value, str) else value
    if not isinstance(named, dict) or not all(isinstance(part, str) for item in named.items() for part in item):
        raise ValueError(f"chat_template in {source} must be a str or a list of named ones, got {value!r:.60}")
    return named
