"""Masks from text, for the command line."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import numpy as np

from maskattn.masks.base import Mask
from maskattn.masks.block_diffusion import BlockDiffusion
from maskattn.masks.causal import Causal
from maskattn.masks.chunked import Chunked
from maskattn.masks.dilated import Dilated
from maskattn.masks.documents import Documents
from maskattn.masks.first_tokens import FirstTokens
from maskattn.masks.full import Full
from maskattn.masks.global_tokens import GlobalTokens
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.neighborhood import Neighborhood
from maskattn.masks.padding import Padding
from maskattn.masks.prefix_lm import PrefixLM
from maskattn.masks.query_padding import QueryPadding
from maskattn.masks.sliding_window import SlidingWindow
from maskattn.masks.tree import Tree


def _documents(*ids: int) -> Mask:
    return Documents(np.array(ids))


def _keys(*keep: int) -> Mask:
    return KeyPadding(np.array(keep, np.bool_))


def _queries(*keep: int) -> Mask:
    return QueryPadding(np.array(keep, np.bool_))


def _global_tokens(*indices: int) -> Mask:
    return GlobalTokens(indices)


def _tree(*parents: int, start: int | None = None) -> Mask:
    return Tree(parents, start)


KINDS: dict[str, Callable[..., Mask]] = {
    "full": Full,
    "causal": Causal,
    "window": SlidingWindow,
    "padding": Padding,
    "prefix": PrefixLM,
    "documents": _documents,
    "keys": _keys,
    "queries": _queries,
    "chunked": Chunked,
    "dilated": Dilated,
    "global_tokens": _global_tokens,
    "first_tokens": FirstTokens,
    "tree": _tree,
    "neighborhood": Neighborhood,
    "block_diffusion": BlockDiffusion,
}


def parse(text: str) -> Mask:
    """A mask from text such as ``causal & window(4)``: names of :data:`KINDS` joined by ``&``, ``|``, ``~``.

    Arguments are integers, None, strings or lists of integers, by position or name, as the class takes them;
    ``documents(0, 0, 1)``, ``keys(1, 0, 1)`` and ``queries(1, 0, 1)`` take one integer a position,
    ``global_tokens(0, 5)`` the positions, ``tree(-1, 0, 0)`` the parents.

    Raises:
        ValueError: the text is not such an expression, or a mask refuses its arguments.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"mask must be an expression such as 'causal & window(4)', got {text!r}") from error
    try:
        return _mask(tree.body)
    except (TypeError, ValueError) as error:
        raise ValueError(f"mask {text!r}: {error}") from error


def _mask(node: ast.expr) -> Mask:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return _mask(node.left) & _mask(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _mask(node.left) | _mask(node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_mask(node.operand)
    if isinstance(node, ast.Name):
        return _kind(node.id)()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        positional = [_argument(argument) for argument in node.args]
        named = {keyword.arg: _argument(keyword.value) for keyword in node.keywords if keyword.arg}
        return _kind(node.func.id)(*positional, **named)
    raise ValueError(f"must be names joined by &, | and ~, got {ast.unparse(node)!r}")


def _kind(name: str) -> Callable[..., Mask]:
    if name not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]


def _argument(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            f"arguments must be integers, None, strings or lists of integers, got {ast.unparse(node)!r}"
        ) from None
