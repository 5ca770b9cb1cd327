"""Writes docs/masks.md and its pictures: a section for each kind of mask, from the gallery below and the docstrings.

    python examples/mask_gallery.py

The pictures that need matplotlib (the extra ``plot``) are left as they are where it is not installed.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskattn import masks
from maskattn.masks.picture import save
from maskattn.masks.svg import svg
from maskattn.masks.view import View

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Example:
    expression: str
    q_len: int = 16
    kv_len: int = 16

    def view(self) -> View:
        mask = eval(self.expression, {"np": np, **{name: getattr(masks, name) for name in masks.__all__}})
        return View.of(mask, self.q_len, self.kv_len, None, None, 0, 0)


@dataclass(frozen=True)
class Kind:
    """A section: what the definition says of query position ``q`` and key position ``k``, and examples."""

    name: str
    formula: str
    examples: tuple[Example, ...]


KINDS = [
    Kind("Full", "always", (Example("Full()"),)),
    Kind("Causal", "k <= q", (Example("Causal()"), Example("Causal()", 6, 16))),
    Kind(
        "SlidingWindow",
        "q - left <= k <= q + right",
        (Example("SlidingWindow(left=4, right=2)"), Example("Causal() & SlidingWindow(left=4)")),
    ),
    Kind(
        "Dilated",
        "abs(k - q) <= window * stride and (k - q) % stride == 0",
        (Example("Dilated(2, 3)"), Example("Causal() & Dilated(2, 3)")),
    ),
    Kind("Chunked", "k // size == q // size", (Example("Chunked(5)"), Example("Causal() & Chunked(5)"))),
    Kind(
        "Padding",
        'k < length, or k >= kv_length - length where side="left"',
        (Example("Padding(11)"), Example('Causal() & Padding(11, side="left")')),
    ),
    Kind("KeyPadding", "keep[k]", (Example("KeyPadding(np.arange(16) % 5 != 3)"),)),
    Kind("QueryPadding", "keep[q]", (Example("QueryPadding(np.arange(16) % 5 != 3)"),)),
    Kind("PrefixLM", "k < length or k <= q", (Example("PrefixLM(6)"),)),
    Kind(
        "Documents",
        "ids[q] == kv_ids[k]",
        (
            Example("Documents(np.repeat([0, 1, 2], [7, 4, 5]))"),
            Example("Causal() & Documents.from_cu_seqlens([0, 7, 11, 16])"),
        ),
    ),
    Kind(
        "FirstTokens",
        "k < n",
        (Example("FirstTokens(2)"), Example("Causal() & (SlidingWindow(left=4) | FirstTokens(2))")),
    ),
    Kind(
        "GlobalTokens",
        "q in indices or k in indices",
        (Example("GlobalTokens([0, 9])"), Example("GlobalTokens([0, 9]) | SlidingWindow(2, 2)")),
    ),
    Kind(
        "Tree",
        "k is before the tree and k <= q, or k is q or one of its ancestors",
        (Example("Tree([-1, 0, 0, 1, 1, 2, 5])"),),
    ),
    Kind(
        "BlockSparse",
        "blocks[q // size, k // size]",
        (Example("BlockSparse(np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]]) == 1, 4)"),),
    ),
    Kind(
        "Neighborhood",
        "first <= k < first + kernel, where first = clip(q - kernel // 2, 0, shape - kernel); on a grid, for each axis",
        (Example("Neighborhood(5, 16)"), Example("Neighborhood((3, 3), (5, 5))", 25, 25)),
    ),
    Kind(
        "BlockDiffusion",
        "k // size <= q // size; with a length, as said above",
        (Example("BlockDiffusion(4)"), Example("BlockDiffusion(4, length=12)", 24, 24)),
    ),
    Kind(
        "Function",
        "f(b, h, q, k)",
        (Example("Function(lambda b, h, q, k: (q ^ k) % 4 == 0)"),),
    ),
    Kind("Dense", "keep[b, h, q - q_offset, k]", (Example("Dense(np.random.default_rng(3).random((16, 16)) < 0.4)"),)),
]

TILES = Example("Causal() & SlidingWindow(left=150)", 512, 512)
FIRST, SECOND = Example("Causal() & SlidingWindow(left=12)", 64, 64), "Causal() & Chunked(16)"

INTRODUCTION = """\
# Masks

<!-- Written by examples/mask_gallery.py: change that, or the docstrings, and run it. -->

A mask says which keys each query sees: True means attend. Masks are expressions: `a & b` shows what both show, `a | b`
what one of them shows, `~a` what `a` hides. Keys that do not exist, past `kv_lengths`, stay unseen under `~` too.

A mask speaks of positions; `q` and `k` below are those of a query and of a key. The last query stands at the last key
that exists, unless `q_offset` says otherwise, so one mask serves prefill, chunked prefill and decode.

In the pictures queries run down and keys to the right, with their first and last positions; what is blue is seen.
"""

SEEING = """\
## Seeing a mask

`explain` says why a query sees a key, or does not:

```python
>>> (Causal() & SlidingWindow(left=128) & Padding(500)).explain(0, 0, 131, 0)
'{sentence}'
```

A notebook shows a mask as a picture such as those above. `draw(q_len, kv_len)` draws it in text, and so does the
command line, which shades large masks:

```sh
maskattn mask "causal & window(128)" --q-len 1000
maskattn mask "causal & window(128)" --q-len 1000 --explain 131,0
maskattn mask "causal & window(128)" --q-len 1000 --png window.png
```

`plot` draws with matplotlib (`pip install "maskattn[plot]"`). `tiles=True` adds the tiles of 64 x 64: empty ones cost
nothing, full ones no work for the mask. `({tiles}).plot(512, 512, tiles=True)`:

![tiles of a causal window](masks/tiles.png)

`other=` shows where two masks differ, here that a window sees keys which a chunk does not, and the other way round:
`({first}).plot(64, 64, other={second})`

![difference of a window and chunks](masks/difference.png)
"""


def definition(kind: type) -> str:
    """What a class's docstring says before its example, in Markdown."""
    said = re.sub(r"``|:\w+:`", "`", (inspect.getdoc(kind) or "").split(">>>")[0])
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in said.strip().split("\n\n"))


def file_name(kind: Kind, number: int) -> str:
    snake = "".join(
        "_" * (i > 0 and c.isupper() and kind.name[i - 1].islower()) + c.lower() for i, c in enumerate(kind.name)
    )
    return f"{snake}{f'_{number + 1}' if number else ''}.svg"


def section(kind: Kind) -> str:
    shape = "{0.q_len} queries, {0.kv_len} keys"
    pictures = "\n\n".join(
        f"`{example.expression}`{'' if example.q_len == example.kv_len else ', ' + shape.format(example)}\n\n"
        f"![{kind.name}](masks/{file_name(kind, number)})"
        for number, example in enumerate(kind.examples)
    )
    return f"## {kind.name}\n\n{definition(getattr(masks, kind.name))}\n\nSeen: `{kind.formula}`.\n\n{pictures}\n"


def texts() -> dict[str, str]:
    """What belongs into each text file below docs."""
    mask = masks.Causal() & masks.SlidingWindow(left=128) & masks.Padding(500)
    seeing = SEEING.format(
        sentence=mask.explain(0, 0, 131, 0), tiles=TILES.expression, first=FIRST.expression, second=SECOND
    )
    files = {"masks.md": "\n".join([INTRODUCTION, *(section(kind) for kind in KINDS), seeing])}
    for kind in KINDS:
        files |= {
            f"masks/{file_name(kind, i)}": svg(example.view(), example.expression)
            for i, example in enumerate(kind.examples)
        }
    return files


def main() -> None:
    (DOCS / "masks").mkdir(exist_ok=True)
    for name, text in texts().items():
        (DOCS / name).write_text(text)
    if importlib.util.find_spec("matplotlib"):
        save(TILES.view(), DOCS / "masks" / "tiles.png", tiles=True, dpi=72)
        other = Example(SECOND).view().mask
        save(FIRST.view(), DOCS / "masks" / "difference.png", other, dpi=72)


if __name__ == "__main__":
    main()
