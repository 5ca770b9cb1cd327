"""Chat templates in the styles of well-known models: text and ids of a conversation are those of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import maskattn  # noqa: E402
import tiny_families  # noqa: E402
from tiny_tokenizers import llama3_json, write  # noqa: E402

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for message in rest %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% if loop.index0 == 0 and system %}
    {% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
  {% else %}{% set content = message['content'] %}{% endif %}
  {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
  {% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""
LLAMA3 = """{%- for message in messages -%}
{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
    + message['content'] | trim + '<|eot_id|>' -%}
{%- if loop.index0 == 0 -%}{%- set content = bos_token + content -%}{%- endif -%}
{{- content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}
{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
MISTRAL = """{%- set ns = namespace(index=0, system='') -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {%- set ns.system = message.content -%}{%- continue -%}
  {%- endif -%}
  {%- if message.role == 'user' -%}
    {{- bos_token if ns.index == 0 else '' }}[INST]
    {{- ' ' + (ns.system + '\\n\\n' if ns.system and loop.last else '') }}{{ message.content }}[/INST]
  {%- elif message.role == 'assistant' -%}
    {% generation %}{{ ' ' ~ message.content ~ eos_token }}{% endgeneration %}
  {%- else -%}{{ raise_exception('Only user, system and assistant roles are supported!') }}{%- endif -%}
  {%- set ns.index = ns.index + 1 -%}
{%- endfor -%}"""
TOOLS = """{{ bos_token }}
{% if tools %}[TOOLS]{% for tool in tools %}{% if loop.index > 2 %}{% break %}{% endif %}
{{ tool | tojson(indent=2) }}{% endfor %}[/TOOLS]{% endif %}
{% for document in documents or [] %}{{ document.title }}: {{ document.text }}
{% endfor %}
{% for message in messages %}
    {% if message.tool_calls is defined %}{{ message.tool_calls | tojson }}{% endif %}
    {{ message.role }}: {% if message.content is string %}{{ message.content }}
    {%- else %}{% for block in message.content %}{{ block.text }}{% endfor %}{% endif %}
    {%- if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}{{ eos_token }}
{% endfor %}{{ dict(a=1, **{'b': mood}) | tojson }}"""
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "tools": TOOLS}
USER, ASSISTANT = {"role": "user", "content": " Who are you?\n"}, {"role": "assistant", "content": "A  fox. 狐 <b>&"}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be <kind>."}, USER],
    [USER, ASSISTANT, {"role": "user", "content": "<|eot_id|> again"}],
    [{"role": "tool", "content": "4"}],
]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Größe 'a' & \"b\"", "parameters": {"type": "object"}},
}


def both(path: Path, template: Any, **files: Any) -> tuple[Any, Any]:
    made = llama3_json("PreTrainedTokenizerFast")
    if template is not None:
        made["tokenizer_config.json"]["chat_template"] = template
    settings = tiny_families.config("llama", vocab_size=420, max_position_embeddings=4000)
    tiny_families.write(path, settings)
    write(path, {**made, **files})
    return maskattn.load(path), transformers.AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations(name: str, tmp_path: Path) -> None:
    ours, theirs = both(tmp_path, TEMPLATES[name])
    rendered = 0
    for messages in CHATS:
        for ending in ({"add_generation_prompt": True}, {"add_generation_prompt": False}):
            options = (
                {"tools": [TOOL, TOOL, TOOL], "documents": [{"title": "t", "text": "ü"}]} if name == "tools" else {}
            )
            variables = {"mood": "<good>", "eos_token": "EOS"} if name == "tools" else {}
            refusal = None
            try:
                want = theirs.apply_chat_template(messages, tokenize=False, **ending, **options, **variables)
            except Exception as error:
                refusal = re.escape(str(error)[:40])
            if refusal is not None:
                with pytest.raises(ValueError, match=f"messages must be what the chat template .*{refusal}"):
                    ours.chat_prompt(messages, **ending, **options, variables=variables)
                continue
            rendered += 1
            assert ours.chat_prompt(messages, **ending, **options, variables=variables) == want
            ids = theirs.apply_chat_template(messages, **ending, **options, **variables)["input_ids"]
            assert ours.chat_ids(messages, **ending, **options, variables=variables) == ids
    assert rendered >= 2


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral", "tools"])
@given(text=st.text(min_size=1, max_size=20).filter(str.strip))
def test_an_answer_is_continued(name: str, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    ours, theirs = both(tmp_path_factory.mktemp("chat"), TEMPLATES[name])
    variables = {"mood": "m"} if name == "tools" else {}
    messages = [USER, {"role": "assistant", "content": text}]
    want = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True, **variables)
    options = {"add_generation_prompt": False, "continue_final_message": True, "variables": variables}
    assert ours.chat_prompt(messages, **options) == want


def test_blocks_calls_and_reasoning(tmp_path: Path) -> None:
    ours, theirs = both(tmp_path, TOOLS)
    blocks = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": None, "tool_calls": [{"id": 1, "arguments": {"x": [1, 2.5, True, None]}}]},
        {"role": "assistant", "content": "c", "thinking": "hm"},
        {"role": "assistant", "content": blocks},
    ]
    for some in (messages[:1], messages[2:3], messages[::3]):
        assert ours.chat_prompt(some, variables={"mood": 1}) == theirs.apply_chat_template(
            some, tokenize=False, add_generation_prompt=True, mood=1
        )
    options: dict[str, Any] = {"continue_final_message": True}
    assert ours.chat_prompt(
        messages, add_generation_prompt=False, variables={"mood": 1}, **options
    ) == theirs.apply_chat_template(messages, tokenize=False, mood=1, **options)


def test_where_templates_are(tmp_path: Path) -> None:
    several = [{"name": "default", "template": "D{{ bos_token }}"}, {"name": "tool_use", "template": "T"}]
    for i, (template, files) in enumerate(
        [
            ("one", {}),
            (several, {}),
            ("unused", {"chat_template.jinja": "from a file\n"}),
            (several, {"chat_template.jinja": "from a file"}),
        ]
    ):
        ours, theirs = both(tmp_path / str(i), template, **files)
        for tools in (None, [TOOL]):
            want = theirs.apply_chat_template([USER], tools=tools, tokenize=False)
            assert ours.chat_prompt([USER], tools=tools) == want
        (tmp_path / str(i) / "additional_chat_templates").mkdir()
        (tmp_path / str(i) / "additional_chat_templates" / "short.jinja").write_text("S")
        ours, theirs = both(tmp_path / str(i), template, **files)
        if files:
            want = theirs.apply_chat_template([USER], chat_template="short", tokenize=False)
            assert ours.chat_prompt([USER], template="short") == want == "S"


def test_an_answer(tmp_path: Path) -> None:
    """Of a model: what it writes after the prompt's ids, as text."""
    ours, theirs = both(tmp_path, LLAMA3)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = theirs.apply_chat_template([USER], add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    want = theirs.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours.chat([USER], max_new_tokens=12) == want
    assert json.dumps(want) != '""'
    assert np.isfinite(ours.score(["The quick"], [" brown fox"])[0]).all()


@pytest.mark.parametrize("special", [False, True])
def test_an_answer_stops_at_a_text(special: bool, tmp_path: Path) -> None:
    """Also at a special token's, which is in no decoded text."""
    ours, theirs = both(tmp_path, LLAMA3)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = theirs.apply_chat_template([USER], add_generation_prompt=True, return_tensors="pt")
    first = prompt["input_ids"].shape[1]
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    free = model.generate(**prompt, **options, pad_token_id=0)[0, first:].tolist()
    texts = [theirs.decode(i) for i in free[2:]]
    stop = next(text for text in texts if text.isascii() and text.startswith("<|") == special)
    out = model.generate(**prompt, **options, pad_token_id=0, stop_strings=[stop], tokenizer=theirs)
    want = out[0, first:].tolist()
    assert 1 < len(want) < 24, "or nothing has stopped it"
    assert ours.generate_ids([prompt["input_ids"][0].tolist()], **options, stop_strings=[stop]) == [want]
