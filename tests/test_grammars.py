"""Texts that follow a JSON schema, a regular expression or a grammar, whatever the weights say."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import maskattn
import tiny_families
import tiny_tokenizers
from maskattn.decoder.grammars import matching

pytest.importorskip("llguidance")

Json = dict[str, Any]
PERSON: Json = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
QUERY = """
start: "SELECT " NAME ("," NAME)* " FROM " NAME where?
where: " WHERE " NAME " " OPERATOR " " NUMBER
NAME: /[a-z]+/
OPERATOR: "<" | "=" | ">"
NUMBER: /[0-9]+/
"""
QUERIES = re.compile(r"SELECT [a-z]+(,[a-z]+)* FROM [a-z]+( WHERE [a-z]+ [<=>] [0-9]+)?")


#: family, tokenizer's files, vocabulary, end token.
KINDS: dict[str, tuple[str, Callable[[], dict[str, Any]], int, int]] = {
    "byte level": ("qwen2", tiny_tokenizers.qwen2, 410, 402),
    "pieces": ("llama", tiny_tokenizers.llama, 425, 2),
}


def load(path: Path, kind: str, seed: int = 1, spread: float = 3.0, **changes: Any) -> Any:
    """A model with random weights; ``spread``: of its scores."""
    family, _, vocab, end = KINDS[kind]
    config = tiny_families.config(family, vocab_size=vocab, eos_token_id=end, **changes)
    weights = {name: w * (spread if w.ndim == 2 else 1) for name, w in tiny_families.tensors(config, seed).items()}
    tiny_tokenizers.write(path, _files(kind))
    return maskattn.load(tiny_families.write(path, config, weights))


@cache
def _files(kind: str) -> dict[str, Any]:
    return KINDS[kind][1]()


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tmp_path_factory.mktemp("constrained"), request.param)


TEXTS = ["The quick brown fox", "new"]
SEARCHES = [{}, {"do_sample": True, "seed": 1, "temperature": 2.0, "top_k": 0}, {"prompt_lookup_num_tokens": 4}]
SEARCHES += [{"num_beams": 3, "num_return_sequences": 2}]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_whatever_the_search(model: Any, search: Json) -> None:
    """Of a ragged batch, with little room; what is written in a batch is what is written alone."""
    options = {"max_new_tokens": 34, **search}
    for text in (made := model.generate(TEXTS, json_schema=PERSON, **options)):
        person = json.loads(text)
        assert isinstance(person["name"], str)
        assert isinstance(person["age"], int)
        assert set(person) <= {"name", "age", "tags"}
    assert all(QUERIES.fullmatch(text) for text in model.generate(TEXTS, grammar=QUERY, **options))
    pattern = r"(ab|c)+d[0-9]{3}-(x|yz){2,40}"
    assert all(re.fullmatch(pattern, text) for text in model.generate(TEXTS, regex=pattern, **options))
    assert model.generate(TEXTS, json_schema=PERSON, batch_size=1, **options) == made


@pytest.mark.parametrize("constraint", [{"grammar": QUERY}, {"regex": r"(ab|c)+d[0-9]{3}-(x|yz){2,40}"}], ids=str)
def test_neither_the_batch_nor_what_is_kept_shows_near_the_limit(
    model: Any, constraint: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ways to an end are looked for, what has been forgotten is found again as it was."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(5, 400, rng.integers(1, 9)).tolist() for _ in range(30)]
    options = {"max_new_tokens": 20, "do_sample": True, "seed": 3, "temperature": 2.0, "top_k": 0, **constraint}
    want = model.generate_ids(sources, **options)
    monkeypatch.setattr(matching, "_KEPT", 1)
    assert model.generate_ids(sources, **options) == want
    # The same beginnings under another limit, some of which the texts before have left their ways to.
    short, long = ({**options, "max_new_tokens": None, "max_length": n} for n in (24, 27))
    monkeypatch.setattr(matching, "_KEPT", 1024)
    both = [*sources, *([*source, 5, 5, 5] for source in sources)]
    assert model.generate_ids(both, **long)[:30] == model.generate_ids(sources, **long)
    assert model.generate_ids(both, **short)[:30] == model.generate_ids(sources, **short)


def test_the_end_comes_where_the_text_is_whole_and_nowhere_else(model: Any) -> None:
    ends = {model.config["eos_token_id"]}
    sources = [model.tokenizer.encode(text) for text in TEXTS]
    for ids in model.generate_ids(sources, regex="(yes|no)!", max_new_tokens=20):
        assert model.tokenizer.decode(ids) in ("yes!", "no!")
        assert ends.intersection(ids) == {ids[-1]}
    # It is not made to come: a text may go on, as long as it may.
    long = model.generate_ids(sources, regex="[a-z]+", max_new_tokens=20, suppress_tokens=list(ends))
    assert [len(ids) for ids in long] == [20] * len(TEXTS)
    # Where all that may follow is forbidden, the constraint holds all the same.
    forbidden = [i for i in range(400) if i not in ends]
    for text in model.generate(TEXTS, regex="yes", max_new_tokens=20, suppress_tokens=forbidden):
        assert text == "yes"


def test_tokens_of_several_bytes_and_parts_of_characters(model: Any) -> None:
    for text in model.generate(TEXTS, regex="ü: (我|们|在){3} ж", max_new_tokens=40):
        assert re.fullmatch("ü: [我们在]{3} ж", text)


def test_an_assistant_drafts_by_the_grammar(model: Any) -> None:
    want = model.generate(TEXTS, grammar=QUERY, max_new_tokens=60)
    drafts = {"assistant_model": model, "assistant_confidence_threshold": 0.0, "num_assistant_tokens": 6}
    sources = [model.tokenizer.encode(text) for text in TEXTS]
    made = model.generate_ids(sources, grammar=QUERY, max_new_tokens=60, **drafts)
    assert [model.tokenizer.decode(ids) for ids in made] == want
    assert all(ids.speculated.accepted == ids.speculated.drafted for ids in made)


def test_schemas_as_text_and_as_pydantic_says_it(model: Any) -> None:
    class Model:
        @staticmethod
        def model_json_schema() -> Json:
            return PERSON

    options = {"max_new_tokens": 60}
    want = model.generate(TEXTS, json_schema=PERSON, **options)
    assert model.generate(TEXTS, json_schema=json.dumps(PERSON), **options) == want
    assert model.generate(TEXTS, json_schema=Model, **options) == want
    compact = PERSON | {"x-guidance": {"whitespace_pattern": ""}}
    for text in model.generate(TEXTS, json_schema=compact, **options):
        assert text.startswith('{"name":')


def test_gbnf(model: Any) -> None:
    grammar = 'root ::= "<" word ("," word)* ">"\nword ::= [a-z]+'
    for text in model.generate(TEXTS, grammar=grammar, max_new_tokens=30):
        assert re.fullmatch("<[a-z]+(,[a-z]+)*>", text)


def test_a_forced_language_is_no_part_of_the_text(tmp_path: Path) -> None:
    """Of an encoder-decoder model with a forced first and a forced last token, and a token per character."""
    import tiny_marian

    config = tiny_marian.CONFIG | {"forced_bos_token_id": 9, "max_position_embeddings": 48}
    model = maskattn.load(tiny_marian.write(tmp_path, config))
    for limit in (12, 30):
        for ids in model.generate_ids([[5, 9], [7], [3, 4, 30]], regex="([a-z]+ ){2}[0-9]-[0-9]", max_new_tokens=limit):
            assert ids[0] == 9
            assert ids[-1] == tiny_marian.EOS
            assert re.fullmatch("([a-z]+ ){2}[0-9]-[0-9]", model.tokenizer.decode(ids[1:]))


def test_the_example_writes_queries_whatever_the_weights_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parents[1] / "examples"
    monkeypatch.syspath_prepend(str(folder))
    example = importlib.import_module("parse_questions")
    conditions = r"((country = '[A-Z][a-z]+'|[a-z]+ [<=>] \d+)( and )?){1,2}"
    query = rf"select (name|count\(\*\)) from [a-z]+( where {conditions})?( order by [a-z]+ (asc|desc) limit \d+)?"
    for seed in range(3):
        load(tmp_path / str(seed), "byte level", seed)
        options = ["--model", str(tmp_path / str(seed)), "--grammar", str(folder / "queries.lark"), "--json"]
        example.main([*options, "--max-new-tokens", "90", "Which rivers in Peru are longer than 300 km?", "new"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 6
    assert all(re.fullmatch(query, record["query"]) for record in records)


# Schemas and weights at random

EXAMPLES = 20

WORDS = st.sampled_from(["a", "name", "två", "x y", 'q"t', "back\\slash", "zz9"])


def objects(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    def build(properties: dict[str, Json], needed: list[bool], more: Any) -> Json:
        names = [name for name, flag in zip(properties, needed, strict=False) if flag]
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": more}

    return st.builds(
        build, st.dictionaries(WORDS, inner, max_size=4), st.lists(st.booleans(), max_size=4), st.booleans()
    )


def arrays(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    def build(items: Json, least: int, more: int) -> Json:
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}

    return st.builds(build, inner, st.integers(0, 1), st.integers(0, 3)) | st.just({"type": "array"})


LEAVES = st.sampled_from(
    [
        {},
        {"type": "string"},
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]{2,}-[0-9]+$"},
        {"type": "string", "format": "date"},
        {"type": "integer"},
        {"type": "integer", "minimum": -3, "maximum": 250},
        {"type": "number"},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
        {"type": ["boolean", "null"]},
        {"enum": ["red", "grün", 3, None]},
        {"const": {"k": [1, 2]}},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: objects(inner) | arrays(inner) | st.builds(lambda *a: {"anyOf": list(a)}, inner, inner),
    max_leaves=6,
)
KIND_OF = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
KIND_OF |= {"array": list, "object": dict}


def fits(value: Any, schema: Json) -> bool:
    """Whether JSON is of the schema, for the keywords above."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(type(value) is type(one) and value == one for one in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", list(KIND_OF))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(isinstance(value, KIND_OF[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in kinds):
        return False
    if isinstance(value, str):
        whole = re.search(schema.get("pattern", ""), value) is not None
        return whole and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30)
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", -np.inf), schema.get("maximum", np.inf)
        return bool(low <= value <= high and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"]))
    if isinstance(value, list):
        some = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30)
        return some and all(fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        known = all(fits(one, properties[name]) if name in properties else more for name, one in value.items())
        return known and set(schema.get("required", [])) <= set(value)
    return True


@cache
def shared(kind: str) -> Any:
    return load(Path(mkdtemp()), kind)


@settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(SCHEMAS, st.sampled_from(list(KINDS)), st.integers(0, 1 << 30), st.sampled_from(SEARCHES), st.floats(0.3, 30))
def test_random_schemas_and_weights(schema: Json, kind: str, seed: int, search: Json, spread: float) -> None:
    model = shared(kind)
    head = np.random.default_rng(seed).standard_normal((model.width, model._forward.vocab)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model._forward, "logits", lambda hidden: np.float32(spread) * hidden @ head)
        (text, *_) = model.generate([TEXTS[seed % 2]], json_schema=schema, max_new_tokens=240, **search)
    assert fits(json.loads(text), schema), text


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"json_schema": 3},
            TypeError,
            "json_schema must be a JSON schema: a dict, its text, or a pydantic model, got 3",
        ),
        ({"json_schema": "{"}, ValueError, "json_schema must be a JSON schema: .*Expecting property name.*got '{'"),
        ({"json_schema": "[1]"}, ValueError, r"json_schema must be a JSON schema: .*not an object.*got '\[1\]'"),
        (
            {"json_schema": {"type": "objekt"}},
            ValueError,
            "json_schema must be one that llguidance can follow, got: Inv",
        ),
        ({"json_schema": {"uniqueItems": True}}, ValueError, "got: Unimplemented keys: .*uniqueItems"),
        ({"regex": "a(b"}, ValueError, "regex must be one that llguidance can follow, got: (?s:.*)unclosed group"),
        ({"regex": 3}, TypeError, "regex must be a regular expression, a str, got 3"),
        (
            {"grammar": "start: x"},
            ValueError,
            'grammar must be one that llguidance can follow, got: .*unknown name: "x"',
        ),
        ({"grammar": "root ::= ("}, ValueError, r"grammar must be a grammar in Lark's syntax or in GBNF \(Expected"),
        ({"grammar": "start: x", "regex": "a"}, ValueError, "grammar must be None with a regex"),
        (
            {"regex": "a", "eos_token_id": []},
            ValueError,
            "regex needs an eos_token_id, which ends texts that are whole",
        ),
    ],
)
def test_bad_options(model: Any, options: Json, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.generate_ids([[5]], **{"max_new_tokens": 3} | options)


def test_models_that_cannot_be_followed(tmp_path: Path) -> None:
    plain = maskattn.load(tiny_families.write(tmp_path / "plain", tiny_families.config("llama")))
    with pytest.raises(ValueError, match="regex needs a tokenizer: tokenizer"):
        plain.generate_ids([[3]], regex="a")
