"""``maskattn mask``: draw a mask, or say why a query sees a key."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskattn.masks.view import View


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    mask = commands.add_parser("mask", help="draw a mask, e.g. 'causal & window(4)'")
    mask.add_argument("expression", help="full, causal, window(left, right), padding(n), prefix(n), ... with & | ~")
    mask.add_argument("--q-len", type=int, required=True, metavar="N", help="queries")
    mask.add_argument("--kv-len", type=int, metavar="N", help="keys; default: as many as queries")
    mask.add_argument("--q-offset", type=int, metavar="N", help="position of the first query; default: kv-len - q-len")
    mask.add_argument("--batch-index", type=int, default=0, metavar="N", help="the sequence to show; default: 0")
    mask.add_argument("--head", type=int, default=0, metavar="N", help="the head to show; default: 0")
    mask.add_argument("--explain", metavar="Q,K", help="instead: why query position Q sees key K, or does not")
    mask.add_argument("--png", metavar="FILE", help="instead of drawing in the terminal: write a picture (extra: plot)")
    mask.set_defaults(run=_mask)


def _mask(options: argparse.Namespace) -> None:
    from maskattn.masks.parse import parse
    from maskattn.masks.picture import draw_and_count, save
    from maskattn.masks.view import View

    mask, q_len = parse(options.expression), options.q_len
    kv_len = q_len if options.kv_len is None else options.kv_len
    view = View.of(mask, q_len, kv_len, options.q_offset, None, options.batch_index, options.head)
    if options.png:
        save(view, options.png)
    if options.explain:
        print(_explain(view, options.explain))
    if not options.png and not options.explain:
        picture, seen = draw_and_count(view)
        print(picture)
        print(f"{seen} of {q_len * kv_len} positions attended")


def _explain(view: View, pair: str) -> str:
    try:
        query, key = (int(part) for part in pair.split(","))
    except ValueError:
        raise ValueError(f"--explain must be Q,K: a query and a key position, got {pair!r}") from None
    first, end = view.q_offset, view.q_offset + view.plan.q_len
    if not first <= query < end:
        queries = f"from {first} to {end - 1}" if end > first else "position, but there are none"
        raise ValueError(f"--explain must name a query {queries}, got {query}")
    return view.mask.explain(view.b, view.h, query, key, q_offset=first, kv_length=view.kv_length)
