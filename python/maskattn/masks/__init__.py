"""Masks: immutable expressions over positions, combined with ``&``, ``|`` and ``~``. True means attend.

Other libraries' conventions come in and leave by the names of :mod:`maskattn.masks.conventions` (``from_hf``,
``to_torch_mha``, ``check``, ...), which are found here too.
"""

import importlib
import re
import typing

if typing.TYPE_CHECKING:
    from maskattn.masks.algebra import All, Any, Not
    from maskattn.masks.base import Mask
    from maskattn.masks.block_diffusion import BlockDiffusion
    from maskattn.masks.block_sparse import BlockSparse
    from maskattn.masks.causal import Causal
    from maskattn.masks.chunked import Chunked
    from maskattn.masks.conventions import *  # noqa: F403
    from maskattn.masks.dense import Dense
    from maskattn.masks.difference import Difference, diff  # noqa: F401
    from maskattn.masks.dilated import Dilated
    from maskattn.masks.documents import Documents
    from maskattn.masks.first_tokens import FirstTokens
    from maskattn.masks.full import Full
    from maskattn.masks.function import Function
    from maskattn.masks.global_tokens import GlobalTokens
    from maskattn.masks.key_padding import KeyPadding
    from maskattn.masks.neighborhood import Neighborhood
    from maskattn.masks.padding import Padding
    from maskattn.masks.prefix_lm import PrefixLM
    from maskattn.masks.query_padding import QueryPadding
    from maskattn.masks.sliding_window import SlidingWindow
    from maskattn.masks.tree import Tree

__all__ = [
    "All",
    "Any",
    "BlockDiffusion",
    "BlockSparse",
    "Causal",
    "Chunked",
    "Dense",
    "Dilated",
    "Documents",
    "FirstTokens",
    "Full",
    "Function",
    "GlobalTokens",
    "KeyPadding",
    "Mask",
    "Neighborhood",
    "Not",
    "Padding",
    "PrefixLM",
    "QueryPadding",
    "SlidingWindow",
    "Tree",
]

_ELSEWHERE = {"All": "algebra", "Any": "algebra", "Not": "algebra", "Mask": "base"}
_TOOLS = {"Difference": "difference", "diff": "difference"}


if not typing.TYPE_CHECKING:  # or any name would pass for one of ours

    def __getattr__(name: str) -> typing.Any:
        # Imported on first use, a kind from the file of its name: who needs one mask does not wait for all of them.
        if name in __all__ or name in _TOOLS:
            module = (_ELSEWHERE | _TOOLS).get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
            value = getattr(importlib.import_module(f"maskattn.masks.{module}"), name)
            globals()[name] = value
            return value
        if not name.startswith("_") and name != "conventions":
            conventions = importlib.import_module("maskattn.masks.conventions")
            if name in conventions.__all__:
                return getattr(conventions, name)
        raise AttributeError(f"module 'maskattn.masks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_TOOLS, *importlib.import_module("maskattn.masks.conventions").__all__])
