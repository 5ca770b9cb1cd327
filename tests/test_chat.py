"""Chat templates that misbehave, and what conversations are refused; without transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import maskattn
import tiny_families
import tiny_tokenizers as tiny

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
CHAT = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


def load(path: Path, template: Any = CHAT) -> maskattn.Model:
    tiny_families.write(path, tiny_families.config("llama", vocab_size=450, max_position_embeddings=500))
    files = tiny.llama3_json("PreTrainedTokenizerFast")
    files["tokenizer_config.json"]["chat_template"] = template
    return maskattn.load(tiny.write(path, files))


def test_jinja_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tmp_path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'jinja2 must be installed .* pip install "maskattn\[text\]"'):
        model.chat([{"role": "user", "content": "x"}])


USER = {"role": "user", "content": "new"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('no foxes') }}",
            "'default' of tokenizer_config.json accepts, got TemplateError: no foxes",
        ),
        ("{% for %}", "got TemplateSyntaxError"),
        ("{{ nowhere.to.go }}", "got UndefinedError"),
        ("{{ 1 / 0 }}", "got ZeroDivisionError"),
        ("{{ messages[0]['content'] + 1 }}", "got TypeError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "got SecurityError"),
        ("{{ messages.append(1) }}", "got SecurityError"),
        ("{{ raise_exception.__globals__['json'] }}", "got SecurityError"),
        ("{% set n = namespace(__class__=1) %}", "got SecurityError"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "got SecurityError"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "got OverflowError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "got RecursionError"),
        ({"a": "x"}, "template must be one of a, as tokenizer_config.json has, got 'default'"),
        ([{"name": "default"}], "chat_template in tokenizer_config.json must be a str or a list of named ones"),
        (3, "chat_template in tokenizer_config.json must be a str or a list of named ones, got 3"),
    ],
)
def test_a_template_misbehaves(template: Any, message: str, tmp_path: Path) -> None:
    model = load(tmp_path, template)
    with pytest.raises(ValueError, match=message):
        model.chat([USER])


class Rich:
    def write(self, name: str) -> None:
        raise AssertionError("a template has called a method")


@pytest.mark.parametrize(
    ("messages", "options", "error", "message"),
    [
        ("x", {}, TypeError, 'messages must be a list of {"role": ..., "content": ...}, got .x.; pass'),
        ([], {}, ValueError, "messages must hold at least one message, got none"),
        (["x"], {}, TypeError, r"messages\[0\] must be "),
        ([{"content": "x"}], {}, ValueError, r'messages\[0\] must have a "role"'),
        (
            [{"role": "user", "content": Rich()}],
            {},
            TypeError,
            r"messages\[0\] must hold what JSON can hold, got .*Rich",
        ),
        ([USER], {"variables": {"x": Rich()}}, TypeError, "variables must hold what JSON can hold"),
        ([USER], {"tools": [print]}, TypeError, "tools must hold what JSON can hold"),
        ([USER], {"template": "x"}, ValueError, "template must be one of default, .* got 'x'"),
        (
            [{"role": "user"}],
            {"continue_final_message": True},
            ValueError,
            "continue_final_message must come with a content",
        ),
    ],
)
def test_what_chat_refuses(
    messages: Any, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = load(tmp_path)
    with pytest.raises(error, match=message):
        model.chat(messages, **options)


def test_messages_are_left_alone(tmp_path: Path) -> None:
    model, messages = (
        load(tmp_path),
        [USER, {"role": "assistant", "content": "low "}],
    )
    before = json.dumps(messages)
    open_end = model.chat_prompt(messages, add_generation_prompt=False, continue_final_message=True)
    assert open_end == "<|user|>new<|assistant|>low "
    assert json.dumps(messages) == before
    with pytest.raises(ValueError, match="continue_final_message must be False with add_generation_prompt, got both"):
        model.chat_prompt(messages, continue_final_message=True)


def test_a_template_in_a_file_of_its_own(tmp_path: Path) -> None:
    load(tmp_path, None)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J{{ bos_token }}"}))
    assert maskattn.load(tmp_path).chat_prompt([USER]) == "J<|begin_of_text|>"
    (tmp_path / "chat_template.jinja").write_text("F{{ eos_token }}")
    assert maskattn.load(tmp_path).chat_prompt([USER]) == "F<|eot_id|>"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja must be UTF-8 text, got"):
        maskattn.load(tmp_path).chat_prompt([USER])
    (tmp_path / "chat_template.jinja").write_text("")
    with pytest.raises(ValueError, match="messages must become at least one token, got an empty text; correct the"):
        maskattn.load(tmp_path).chat([USER])


def test_an_answer_as_it_comes(tmp_path: Path) -> None:
    model = load(tmp_path)
    want = model.chat([USER], max_new_tokens=12)
    assert "".join(model.stream_chat([USER], max_new_tokens=12)) == want
    with maskattn.Engine(model) as engine:
        assert engine.submit_chat([USER], max_new_tokens=12).result() == want
    with pytest.raises(ValueError, match="messages must hold at least one message, got none"):
        model.stream_chat([])
