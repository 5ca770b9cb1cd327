"""Stop strings: a sequence ends with the same token as by transformers' StopStringCriteria."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("google.protobuf")  # by which transformers reads SentencePiece models

from transformers import StopStringCriteria  # noqa: E402 - after the skips

from maskattn.decoder.options import Options  # noqa: E402
from maskattn.decoder.stopping import stop_strings  # noqa: E402
from maskattn.decoder.text.reading import read_tokenizer  # noqa: E402
from maskattn.families import find  # noqa: E402
from tiny_tokenizers import JSON_FILES, OLD_FILES, write  # noqa: E402

WORDS = ["The quick", "brown", " fox", "doesn't", "3rd", "ça", "我们", "😀", "\n", "\n\n", "a", "aa", " a", "}", "})"]
PROMPT = "The quick brown fox"
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module", params=["gpt2", "llama 3", "llama", "t5"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Our tokenizer and transformers'."""
    family, files = {**OLD_FILES, **JSON_FILES}[request.param]
    directory: Path = write(tmp_path_factory.mktemp("tokenizer"), {**files(), "config.json": {"model_type": family}})
    checkpoint: Any = SimpleNamespace(directory=directory, config={})
    return read_tokenizer(checkpoint, find(family))[0], transformers.AutoTokenizer.from_pretrained(directory)


@given(text=texts, data=st.data())
def test_the_token_that_ends_a_sequence(pair: tuple[Any, Any], text: str, data: st.DataObject) -> None:
    ours, theirs = pair
    # Behind a prompt: the text of a first token may lack the space that it has elsewhere.
    prompt = ours.encode(PROMPT, special_tokens=False)
    ids = prompt + ours.encode(text, special_tokens=False)
    whole = ours.decode(ids, special_tokens=True)
    begin = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    part = whole[begin : begin + data.draw(st.integers(1, 6))]
    assume("\ufffd" not in part)
    stops = [stop for stop in (part, data.draw(st.sampled_from(["aa", "x", "\n\n", "})", " fox"]))) if stop]
    try:
        criterion = StopStringCriteria(theirs, stops)
    except ValueError:  # no token of the vocabulary has anything of it
        assume(False)
    stopped = stop_strings(
        Options({}, {"stop_strings": stops}, 10**6), lambda: lambda some: ours.decode(some, special_tokens=True)
    )
    assert stopped is not None
    for end in range(len(prompt) + 1, len(ids) + 1):
        want = bool(criterion(torch.tensor([ids[:end]]), None)[0])
        assert stopped(np.array(ids[:end])) == want, (stops, ours.tokens(ids[:end]))
