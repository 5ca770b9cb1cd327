"""Masks as SVG, for notebooks and documents: nothing but the standard library and NumPy is needed."""

from __future__ import annotations

import dataclasses
import html
import itertools
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from maskattn.masks.algebra import All, Any, Not
from maskattn.masks.base import Mask
from maskattn.masks.block_diffusion import BlockDiffusion
from maskattn.masks.block_sparse import BlockSparse
from maskattn.masks.dense import Dense
from maskattn.masks.documents import Documents
from maskattn.masks.function import Function
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.neighborhood import Neighborhood
from maskattn.masks.picture import HIDDEN, SEEN, short, strength
from maskattn.masks.query_padding import QueryPadding
from maskattn.masks.tree import Tree
from maskattn.masks.view import Shares, View

_CELLS, _SIDE = 48, 240  # a side: cells at most, pixels
_SMALLEST, _LARGEST = 24, 4096  # a side of the geometry that a notebook shows
_MOST_CALLS = 256  # the same, where a function is asked for each pair


def svg(view: View, title: str | None = None) -> str:
    """An SVG picture of at most 48 x 48 cells, with the first and last positions; default title: the mask's repr."""
    q_len, kv_len = view.plan.q_len, view.plan.kv_len
    rows, columns = max(1, -(-q_len // _CELLS)), max(1, -(-kv_len // _CELLS))
    shares = view.shares(rows, columns)
    lines, across = shares.shape
    cell = min(20.0, round(_SIDE / max(lines, across, 1), 2))
    width, height, left, top = across * cell, lines * cell, 34, 18
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 8:g}" height="{top + height + 8:g}" '
        'font-family="sans-serif" font-size="10" fill="#333">',
        f"<title>{html.escape(short(view.mask, 200) if title is None else title)}</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<g transform="translate({left} {top}) scale({cell:g})">',
        f'<rect width="{across}" height="{lines}" fill="{HIDDEN}"/>',
        *_cells(shares),
        f'<path stroke="#fff" stroke-width="{0.6 / cell:.3f}" d="{_lines(lines, across)}"/>',
        "</g>",
    ]
    last_query = view.q_offset + q_len - 1
    labels = [(left, top - 6, "start", "0"), (left - 5, top + min(cell / 2 + 4, 10), "end", str(view.q_offset))]
    labels += [(left + width, top - 6, "end", str(kv_len - 1))] * (across > 1)
    labels += [(left - 5, top + height - 2, "end", str(last_query))] * (lines > 1)
    parts += [f'<text x="{x:g}" y="{y:g}" text-anchor="{at}">{text}</text>' for x, y, at, text in labels]
    parts.append(f'<text x="{left + width / 2:g}" y="{top - 6}" text-anchor="middle">keys</text>')
    turned = f'transform="translate({left - 6} {top + height / 2:g}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>queries</text>")
    return "\n".join([*parts, "</svg>", ""])


def _cells(shares: Shares) -> list[str]:
    """A path per shade, of the runs of cells that have it."""
    shades = np.ceil(strength(shares) * 8).astype(int)
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(shades):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        for begin, end in itertools.pairwise(edges):
            if begin < end and row[begin]:
                paths.setdefault(int(row[begin]), []).append(f"M{begin} {y}h{end - begin}v1H{begin}z")
    return [
        f'<path fill="{SEEN}" fill-opacity="{shade / 8:g}" d="{"".join(d)}"/>' for shade, d in sorted(paths.items())
    ]


def _lines(lines: int, across: int) -> str:
    return "".join([f"M0 {y}H{across}" for y in range(1, lines)] + [f"M{x} 0V{lines}" for x in range(1, across)])


def notebook(mask: Mask) -> str:
    """HTML for a notebook: the mask's repr under a small picture, where a geometry suits the mask's parameters."""
    name = f"<code>{html.escape(short(mask, 200))}</code>"
    try:
        q_len, kv_len, q_offset = _suggest(mask)
        picture = svg(View.of(mask, q_len, kv_len, q_offset, None, 0, 0))
    except (TypeError, ValueError, IndexError):  # a notebook shows every mask, if only by name
        return f"<div>{name}</div>"
    return f"<div>{picture}<br>{name}</div>"


# A geometry that suits a mask's parameters.


@dataclass(frozen=True)
class _Reach:
    """Queries and keys that a leaf asks for; the most that it takes; and where its query positions end."""

    queries: int = _SMALLEST
    keys: int = _SMALLEST
    most_queries: int = _LARGEST
    most_keys: int = _LARGEST
    positions: int = _LARGEST


def _suggest(mask: Mask) -> tuple[int, int, int]:
    """q_len, kv_len, q_offset."""
    reaches = [_reach(leaf) for leaf in _leaves(mask)]
    positions = min(reach.positions for reach in reaches)
    q_len = min(max(reach.queries for reach in reaches), positions, *(reach.most_queries for reach in reaches))
    kv_len = min(max(reach.keys for reach in reaches), *(reach.most_keys for reach in reaches))
    return q_len, kv_len, max(0, min(kv_len, positions) - q_len)


def _leaves(mask: Mask) -> list[Mask]:
    terms = mask.terms if isinstance(mask, (All, Any)) else (mask.term,) if isinstance(mask, Not) else ()
    return [leaf for term in terms for leaf in _leaves(term)] or [mask]


def _square(side: int) -> _Reach:
    return _Reach(min(side, _LARGEST), min(side, _LARGEST))


@singledispatch
def _reach(leaf: Mask) -> _Reach:
    """Three times the largest number among the parameters."""
    values: list[object] = (
        [getattr(leaf, field.name) for field in dataclasses.fields(leaf)] if dataclasses.is_dataclass(leaf) else []
    )
    numbers = [n for value in values for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int)]
    return _square(max([_SMALLEST, *(3 * n for n in numbers)]))


@_reach.register
def _(leaf: Documents) -> _Reach:
    assert leaf.kv_ids is not None
    queries, keys = leaf.ids.shape[1], leaf.kv_ids.shape[1]
    return _Reach(queries, keys, _LARGEST, min(keys, _LARGEST), min(queries, _LARGEST))


@_reach.register
def _(leaf: KeyPadding) -> _Reach:
    keys = leaf.keep.shape[1]
    return _Reach(keys, keys, most_keys=min(keys, _LARGEST))


@_reach.register
def _(leaf: QueryPadding) -> _Reach:
    queries = leaf.keep.shape[1]
    return _Reach(queries, queries, positions=min(queries, _LARGEST))


@_reach.register
def _(leaf: Dense) -> _Reach:
    asked, most = zip(*((n, n) if n > 1 else (_SMALLEST, _LARGEST) for n in leaf.keep.shape[2:]), strict=True)
    return _Reach(*asked, *most)


@_reach.register
def _(leaf: BlockSparse) -> _Reach:
    queries, keys = (n * leaf.size for n in leaf.blocks.shape[2:])
    return _Reach(min(queries, _LARGEST), min(keys, _LARGEST), positions=queries)


@_reach.register
def _(leaf: Neighborhood) -> _Reach:
    return _square(int(np.prod(leaf.shape)))


@_reach.register
def _(leaf: BlockDiffusion) -> _Reach:
    return _square(max(_SMALLEST, 4 * leaf.size) if leaf.length is None else 2 * leaf.length)


@_reach.register
def _(leaf: Function) -> _Reach:
    return _Reach(most_queries=_MOST_CALLS, most_keys=_MOST_CALLS)


@_reach.register
def _(leaf: Tree) -> _Reach:
    return _square(max(_SMALLEST, len(leaf.parents) + (leaf.start or 4)))
