"""What a tokenizer class is: a declaration, like a family's.

A pipeline is written as the ``tokenizers`` library writes it in tokenizer.json, so that a class is the same whether its
vocabulary comes from there, from older files (vocab.json and merges.txt, vocab.txt) or from a SentencePiece model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskattn.decoder.text.languages import Languages
from maskattn.decoder.text.template import Config, Template

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A tokenizer of the ``tokenizers`` library but for its vocabulary.

    Attributes:
        model: the algorithm and its settings; ``unk_token`` is the name of that token.
        normalizers: what happens to a text before it is cut, given the config and, if there are any, a SentencePiece
            model's own rules.
        pre_tokenizer, decoder: how it is cut into words, and how tokens become text.
        files: where the vocabulary is if there is no tokenizer.json.
        first, skipped, last: what a SentencePiece model's vocabulary begins with instead of its first ``skipped``
            pieces, and what follows its pieces; special tokens by name, or as they are.
    """

    model: Json
    normalizers: Callable[[Config, list[Json]], list[Json]] = lambda config, rules: []
    pre_tokenizer: Callable[[Config], Json]
    decoder: Callable[[Config], Json]
    files: tuple[str, ...]
    first: Callable[[Config], list[str]] = lambda config: []
    skipped: int = 0
    last: Callable[[Config], list[str]] = lambda config: []


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A tokenizer class.

    Attributes:
        names: its special tokens where no file says others; with settings as in ``added_tokens`` of tokenizer.json.
        extra: tokens that are special besides.
        template: what stands around texts; None: as tokenizer.json says, else by ``add_bos_token``, ``add_eos_token``.
        languages: for the multilingual.
        dropped: a regular expression of what is taken out of decoded texts.
        as_is: a tokenizer.json in which this stands is not of this class, whatever tokenizer_config.json says.
        pipeline: None for the classes that use the SentencePiece library itself; ``files`` are theirs.
        spaced: of those classes: a special token inside a decoded text has a space behind it, and a "▁" is one.
    """

    names: Mapping[str, str | Json] = field(default_factory=dict)
    extra: Callable[[Config], list[str]] = lambda config: []
    template: Callable[[Config], Template] | None = None
    languages: Languages | None = None
    dropped: str = ""
    as_is: bytes = b""
    pipeline: Pipeline | None = None
    files: tuple[str, ...] = ()
    spaced: bool = False
