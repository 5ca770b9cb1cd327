"""Tokenizers that the ``tokenizers`` library runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskattn.decoder.checkpoint import read_json
from maskattn.decoder.text import document as documents
from maskattn.decoder.text.kinds import Json, Kind
from maskattn.decoder.text.protocol import need
from maskattn.decoder.text.special import SpecialTokens, plain_token, read_added
from maskattn.decoder.text.subwords import Subwords
from maskattn.decoder.text.template import Template, by_flags
from maskattn.decoder.text.token_bytes import fast_bytes

#: What the clean-up of English takes out: spaces before punctuation and contractions, in this order.
_CLEAN_UP = [(f" {mark}", mark) for mark in ".?!,"] + [(" ' ", "'")]
_CLEAN_UP += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


class FastTokenizer(Subwords):
    """A tokenizer of the ``tokenizers`` library.

    Args:
        template: what stands around texts; None: the library's own post-processor says it.
    """

    def __init__(self, backend: Any, kind: Kind, tokens: SpecialTokens, template: Template | None) -> None:
        super().__init__(kind, tokens, template or Template("$A", "$A $B:1"))
        self._backend, self._by_backend = backend, template is None
        # Of BPE it would take spaces that were in the text: transformers leaves it alone, too.
        clean = tokens.config.get("clean_up_tokenization_spaces", False)
        self._cleans_up = bool(clean) and type(backend.model).__name__ != "BPE"

    @property
    def vocab_size(self) -> int:
        return max(self._backend.get_vocab().values(), default=-1) + 1

    def cut(self, text: str, *, target: bool = False) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, text: str, *, language: str | None = None, special_tokens: bool = True) -> list[int]:
        if self._by_backend and special_tokens and language is None:
            ids: list[int] = self._backend.encode(text).ids
            return ids
        return super().encode(text, language=language, special_tokens=special_tokens)

    def encode_target(self, text: str, *, language: str | None = None) -> list[int]:
        if self._by_backend:
            return self.encode(text, language=language)
        return super().encode_target(text, language=language)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        if self._by_backend:
            encoding = self._backend.encode(first, second)
            return encoding.ids, encoding.type_ids
        return super().encode_pair(first, second)

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=not special_tokens)
        for spaced, close in _CLEAN_UP if self._cleans_up else ():
            text = text.replace(spaced, close)
        return re.sub(self._kind.dropped, "", text) if self._kind.dropped else text

    def tokens(self, ids: Sequence[int]) -> list[str]:
        found = [self._backend.id_to_token(int(i)) for i in ids]
        return [f"<{i}>" if token is None else token for i, token in zip(ids, found, strict=True)]

    def token_bytes(self) -> dict[int, bytes]:
        if self._cleans_up:
            raise ValueError(
                "clean_up_tokenization_spaces must be false to follow a text, got true, which takes spaces out of it "
                "afterwards; correct tokenizer_config.json"
            )
        decoder = None if self._backend.decoder is None else json.loads(self._backend.decoder.__getstate__())
        added = self._backend.get_added_tokens_decoder()
        found = fast_bytes(self._backend.get_vocab(), decoder)
        found |= {i: token.content.encode() for i, token in added.items() if not token.special}
        return {i: token for i, token in found.items() if i not in added or not added[i].special}

    def token_id(self, token: str) -> int | None:
        i: int | None = self._backend.token_to_id(token)
        return i

    def __repr__(self) -> str:
        return f"FastTokenizer({type(self._backend.model).__name__}, {self.vocab_size} tokens)"


def read_fast(directory: Path, kind: Kind | None, tokens: SpecialTokens) -> FastTokenizer:
    """From the files of a checkpoint: tokenizer.json, or what ``kind`` names instead.

    Args:
        kind: the class that makes a pipeline of the vocabulary; None: tokenizer.json is taken as it stands.

    Raises:
        ImportError: the ``tokenizers`` library is not installed.
        ValueError: a file is broken.
    """
    need("tokenizers")
    if (directory / documents.FILE).is_file():
        return _from_file(directory, kind, tokens)
    assert kind is not None
    assert kind.pipeline is not None
    name, own = kind.pipeline.files[0], kind.extra(tokens.config)
    if name.endswith(".model"):
        document, pieces = documents.from_pieces(directory, kind.pipeline, tokens)
    else:
        document, pieces = documents.from_vocab(directory, kind.pipeline, tokens), []
    backend = _backend(json.dumps(document).encode(), name)
    _add_tokens(backend, tokens, tokens.added, [(text, True) for text in own] + pieces)
    template = kind.template or by_flags
    return FastTokenizer(backend, kind, tokens, template(tokens.config))


def _from_file(directory: Path, kind: Kind | None, tokens: SpecialTokens) -> FastTokenizer:
    # Where there is a tokenizer.json it says what stands around texts, and the flags do not count.
    config = {key: value for key, value in tokens.config.items() if key not in ("add_bos_token", "add_eos_token")}
    tokens, added, document = replace(tokens, config=config), tokens.added, None
    if kind is not None and kind.pipeline is not None:
        file = read_json(directory, documents.FILE)
        added = added if tokens.all_added else {**added, **_added_tokens(file)}
        document = documents.rebuild(file, kind.pipeline, tokens)
    if document is None or kind is None:
        kind, backend = Kind(), _backend((directory / documents.FILE).read_bytes(), documents.FILE)
    else:
        backend = _backend(json.dumps(document).encode(), documents.FILE)
    _add_tokens(backend, tokens, added, [(text, True) for text in kind.extra(config)])
    return FastTokenizer(backend, kind, tokens, kind.template(config) if kind.template else None)


def _backend(document: bytes, name: str) -> Any:
    with _named(name):
        backend = need("tokenizers").Tokenizer.from_buffer(document)
        # What stands around texts is looked at when there are texts.
        backend.encode("", "")
    backend.no_truncation()
    backend.no_padding()
    return backend


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of the library, which has no class of its own for them, and panics, which are no Exceptions."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{name} must hold what the tokenizers library can read, got {str(error)[:200]}; download it again"
        ) from error


def _added_tokens(file: Json) -> dict[int, Json]:
    listed = file.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(token, dict) and "id" in token for token in listed):
        raise ValueError("added_tokens of tokenizer.json must be a list of objects with an id; download it again")
    return read_added([(token["id"], token) for token in listed], documents.FILE)


def _add_tokens(backend: Any, tokens: SpecialTokens, added: dict[int, Json], own: list[tuple[str, bool]]) -> None:
    """In the order in which transformers does it, for what the vocabulary lacks gets the next ids in this order."""
    wanted = [added[i] for i in sorted(added)]
    known = {token["content"] for token in wanted} | {t.content for t in backend.get_added_tokens_decoder().values()}
    named = {token["content"] for token in tokens.named.values()}
    extra = tokens.extra
    if extra is None:
        extra = [plain_token(text, special=special) for text, special in own]
    wanted += [token for token in [*tokens.named.values(), *extra] if token["content"] not in known]
    make = need("tokenizers").AddedToken
    backend.add_tokens(
        [make(**{**token, "special": token["special"] or token["content"] in named}) for token in wanted]
    )
