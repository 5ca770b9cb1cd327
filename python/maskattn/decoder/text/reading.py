"""Which tokenizer a checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskattn.decoder.checkpoint import Checkpoint, read_json
from maskattn.decoder.text import document
from maskattn.decoder.text.characters import CharacterTokenizer
from maskattn.decoder.text.classes import KINDS
from maskattn.decoder.text.fast import read_fast
from maskattn.decoder.text.kinds import Kind
from maskattn.decoder.text.pieces import read_pieces
from maskattn.decoder.text.protocol import Tokenizer
from maskattn.decoder.text.special import SpecialTokens, read_special_tokens
from maskattn.families.family import FILE, Family


def tokenizer_class(checkpoint: Checkpoint, family: Family) -> str:
    """As tokenizer_config.json, else config.json names it, else the family's; without the "Fast" of older files."""
    config: Mapping[str, Any] = {}
    if (checkpoint.directory / "tokenizer_config.json").is_file():
        config = read_json(checkpoint.directory, "tokenizer_config.json")
    name = config.get("tokenizer_class") or checkpoint.config.get("tokenizer_class") or family.tokenizer
    if not isinstance(name, str):
        raise ValueError(f"tokenizer_class in tokenizer_config.json must be a str, got {name!r:.40}; take it out")
    return name.removesuffix("Fast")


@dataclass(frozen=True)
class Files:
    """What a checkpoint holds of a tokenizer, and what its class makes of it.

    Attributes:
        kind: the class; None for tokenizer.json as it stands.
        missing: the files that are wanted, if there is no tokenizer.
    """

    directory: Path
    kind: Kind | None
    missing: tuple[str, ...] = ()

    @property
    def special_tokens(self) -> SpecialTokens:
        """Raises ValueError: a file that names them is broken."""
        return read_special_tokens(self.directory, self.kind.names if self.kind else {})


def find_files(checkpoint: Checkpoint, family: Family) -> Files:
    """A class that runs by SentencePiece itself comes first, then tokenizer.json, then older files."""
    directory, kind = checkpoint.directory, KINDS.get(tokenizer_class(checkpoint, family))
    if kind is not None and kind.pipeline is None and not _missing(directory, kind.files):
        return Files(directory, kind)
    if not _missing(directory, [document.FILE]):
        as_it_is = kind is None or kind.pipeline is None or family.tokenizer == FILE
        if kind is not None and kind.as_is:
            as_it_is |= kind.as_is in (directory / document.FILE).read_bytes()
        return Files(directory, None if as_it_is else kind)
    if kind is None:
        return Files(directory, None, (document.FILE,))
    files = kind.pipeline.files if kind.pipeline else kind.files
    missing = _missing(directory, files)
    return Files(directory, kind, (document.FILE, " and ".join(missing)) if missing else ())


def tokenizer_name(checkpoint: Checkpoint, family: Family) -> str | None:
    """The class of the tokenizer, or tokenizer.json where that says it all; None where files are missing."""
    name = tokenizer_class(checkpoint, family)
    if name == CharacterTokenizer.__name__:
        return None if _missing(checkpoint.directory, ["vocab.json"]) else name
    files = find_files(checkpoint, family)
    return None if files.missing else document.FILE if files.kind is None else name


def read_tokenizer(checkpoint: Checkpoint, family: Family) -> tuple[Tokenizer | None, str]:
    """The tokenizer of the files beside a model, or None and what to tell who asks for it.

    Raises:
        ImportError: the library that runs it is not installed.
        ValueError: a file is broken.
    """
    if tokenizer_class(checkpoint, family) == CharacterTokenizer.__name__:
        directory = checkpoint.directory
        if missing := _missing(directory, ["vocab.json"]):
            return None, _lacks(directory, missing)
        config = read_json(directory, "tokenizer_config.json")
        return CharacterTokenizer.read(read_json(directory, "vocab.json"), config), ""
    files = find_files(checkpoint, family)
    if files.missing:
        return None, _lacks(files.directory, files.missing)
    if files.kind is not None and files.kind.pipeline is None:
        return read_pieces(files.directory, files.kind, files.special_tokens), ""
    return read_fast(files.directory, files.kind, files.special_tokens), ""


def _lacks(directory: Path, names: Sequence[str]) -> str:
    wanted = " or ".join(names)
    return f"{wanted} must be in {str(directory)!r}, got no such file; add it, or use the *_ids methods"


def _missing(directory: Path, files: Sequence[str]) -> list[str]:
    return [name for name in files if not (directory / name).is_file()]
