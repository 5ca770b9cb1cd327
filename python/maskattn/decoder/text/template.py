"""Special tokens around one text or two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """What stands around texts: words separated by spaces, ``$A`` and ``$B`` the texts, the others special tokens.

    A special token is called by its name in tokenizer_config.json (``eos_token``), ``language``, or as it is. ``:1``
    behind a word puts it into segment 1; the others are in segment 0.
    """

    single: str
    pair: str

    def fill(
        self, token_id: Callable[[str], int], first: list[int], second: list[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and segments; ``token_id`` gives the id of a special token by its word."""
        ids: list[int] = []
        segments: list[int] = []
        for word in (self.single if second is None else self.pair).split():
            name, _, segment = word.partition(":") if word[-2:] in (":0", ":1") else (word, "", "")
            some = {"$A": first, "$B": second or []}.get(name)
            some = [token_id(name)] if some is None else some
            ids += some
            segments += [int(segment or 0)] * len(some)
        return ids, segments


def by_flags(config: Config) -> Template:
    """As ``add_bos_token`` and ``add_eos_token`` of tokenizer_config.json say; off where they are not there."""
    bos, eos = bool(config.get("add_bos_token", False)), bool(config.get("add_eos_token", False))
    single = "bos_token " * bos + "$A" + " eos_token" * eos
    return Template(single, single + " bos_token:1" * bos + " $B:1" + " eos_token:1" * eos)
