"""tokenizer_config.json and its older companions: special tokens, and tokens added to a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskattn.decoder import check
from maskattn.decoder.checkpoint import read_json
from maskattn.decoder.text.template import Config

Json = dict[str, Any]
#: The names that every tokenizer may have, in the order in which transformers adds missing ones to a vocabulary.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class SpecialTokens:
    """What a checkpoint says about tokens outside its vocabulary file.

    Attributes:
        config: tokenizer_config.json, with what special_tokens_map.json adds; empty if there is neither.
        named: name -> token, as ``added_tokens`` of tokenizer.json has them.
        extra: special tokens without a name; None: no file names any.
        added: tokens by id, ascending.
        all_added: whether ``added`` names all, so that those of tokenizer.json do not count.
    """

    config: Config
    named: dict[str, Json]
    extra: list[Json] | None
    added: dict[int, Json]
    all_added: bool

    @property
    def texts(self) -> dict[str, str]:
        """Name -> text of each named token, as chat templates get them."""
        return {name: token["content"] for name, token in self.named.items()}


def read_special_tokens(directory: Path, defaults: Mapping[str, str | Json]) -> SpecialTokens:
    """From the files of a checkpoint and the ``defaults`` of its tokenizer class.

    Raises:
        ValueError: a file is broken, or a token in it is neither a str nor an object with a ``content``.
    """
    config = _optional(directory, "tokenizer_config.json")
    listed = config.get("added_tokens_decoder")
    added: dict[int, Json] = {}
    if isinstance(listed, dict):
        added = read_added(listed.items(), "tokenizer_config.json")
    else:
        config |= _optional(directory, "special_tokens_map.json")
    source = "tokenizer_config.json or special_tokens_map.json"
    values: dict[str, Any] = {**defaults, **{k: v for k, v in config.items() if _is_name(k, v)}}
    extras = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    for named_too in (extras, config.get("model_specific_special_tokens")):
        values |= named_too if isinstance(named_too, dict) else {}
    named = {name: _token(value, source, special=True) for name, value in values.items() if value is not None}
    for name, token in named.items():
        plain = isinstance(values[name], str)
        default = defaults.get(name)
        if plain and isinstance(default, dict) and default["content"] == token["content"]:
            named[name] = _token(default, source, special=True)
    extra = [_token(value, source, special=True) for value in extras] if isinstance(extras, list) else None
    if not isinstance(listed, dict):
        special = {token["content"] for token in [*named.values(), *(extra or [])]}
        for text, i in _optional(directory, "added_tokens.json").items():
            is_special = text in special
            added[_id(i)] = _token({"content": text, "normalized": not is_special}, source, special=is_special)
    known = {token["content"]: token for token in added.values()}
    named = {name: {**known.get(token["content"], token), "special": True} for name, token in named.items()}
    return SpecialTokens(config, named, extra, dict(sorted(added.items())), isinstance(listed, dict))


def read_added(listed: Iterable[tuple[object, object]], source: str) -> dict[int, Json]:
    """Id -> token, of a file named ``source``."""
    return {_id(i): _token(value, source, special=False) for i, value in listed}


def plain_token(text: str, *, special: bool) -> Json:
    """A token that is found before normalisation, and never trimmed."""
    return {"content": text, **dict.fromkeys(_FLAGS, False), "special": special}


def _is_name(key: str, value: object) -> bool:
    return key in NAMES or (key.endswith("_token") and isinstance(value, str | dict))


def _token(value: object, source: str, *, special: bool) -> Json:
    """A token with all its settings."""
    if isinstance(value, str):
        value = plain_token(value, special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"a token in {source} must be a str or have a content, got {value!r:.60}; download it again")
    check.unicode(f"a token in {source}", value["content"])
    token = {flag: bool(value.get(flag, False)) for flag in _FLAGS}
    token["special"] = special or token["special"]
    # An object that says nothing was written for a tokenizer that normalises what is not special.
    token["normalized"] = bool(value.get("normalized", not value.get("special", False)))
    return {"content": value["content"], **token}


def _id(value: object) -> int:
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise ValueError(f"an added token must have a number as its id, got {value!r:.40}; download the tokenizer again")


def _optional(directory: Path, name: str) -> Json:
    return read_json(directory, name) if (directory / name).is_file() else {}
