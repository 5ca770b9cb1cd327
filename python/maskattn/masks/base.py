"""What all masks share: lowering, facts, and the ways out to arrays and pictures."""

from __future__ import annotations

import typing

import numpy as np
import numpy.typing as npt

from maskattn import _core
from maskattn.masks.edges import Edges
from maskattn.masks.operators import Operators

Index = npt.NDArray[np.int64] | int
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
BoolArray = npt.NDArray[np.bool_]
Lengths = int | npt.NDArray[np.integer[typing.Any]] | list[int] | None


class Mask(Operators):
    """Which keys each query sees. Immutable; True means attend.

    A subclass states its definition in :meth:`allows`, its lowering, in terms of the core's primitives, in ``_lower``,
    and where its answer can change in ``_edges``. Geometry is given when a mask is used: query ``i`` of sequence ``b``
    stands at position ``q_offset[b] + i``, key ``j`` at ``j``, and keys at or past ``kv_lengths[b]`` do not exist.
    """

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        """The definition: whether the query at ``q_pos`` sees the key at ``kv_pos``; integers or arrays that broadcast.

        ``q_offset`` is the position of the call's first query, which a mask that speaks of rows (Dense) asks for;
        ``kv_length`` the keys that exist, which one that counts from the end asks for (Padding on the left, Tree).
        """
        raise NotImplementedError

    def _lower(self) -> _core.MaskExpr:
        raise NotImplementedError

    def _edges(self) -> Edges | None:
        """Where the answer can change; None for an unknown set of pairs, of any q_len and kv_len."""
        return None

    @property
    def expr(self) -> _core.MaskExpr:
        """The core's expression, built on first use."""
        cached: _core.MaskExpr | None = self.__dict__.get("_expr")
        if cached is None:
            cached = self._lower()
            object.__setattr__(self, "_expr", cached)
        return cached

    def plan(
        self,
        q_len: int,
        kv_len: int,
        *,
        batch: int = 1,
        heads: int = 1,
        q_offset: Lengths = None,
        kv_lengths: Lengths = None,
        threads: int | None = None,
    ) -> _core.MaskPlan:
        """Lower the mask for one geometry; the plan serves any number of attention calls and layers.

        Args:
            q_len, kv_len: rows and keys of the call.
            batch, heads: of the call; 1 also where the mask does not depend on them. Parameters of the mask that are
                per sequence (per head) fix them.
            q_offset: position of the first query, one integer or shape (batch,); default ``kv_lengths - q_len``.
            kv_lengths: keys that exist, one integer or shape (batch,); default ``kv_len``.
            threads: at most this many.

        Returns:
            Memory O(q_len * intervals) while rows are few intervals, else bits.

        Raises:
            TypeError, ValueError: lengths are out of range, or the mask has another batch, head count or size.
        """
        expr = self.expr
        if batch == 1:
            batch = expr.batch
        if heads == 1:
            heads = expr.heads
        return _core.make_plan(expr, q_len, kv_len, batch, heads, q_offset, kv_lengths, threads)

    def count(self, q_len: int, kv_len: int, **geometry: typing.Any) -> int:
        """Pairs of query and key that attend, over all sequences and heads; ``geometry`` as in :meth:`plan`."""
        return self.plan(q_len, kv_len, **geometry).count()

    def density(self, q_len: int, kv_len: int, **geometry: typing.Any) -> float:
        """The share of all pairs that attend, 0 where there are none; ``geometry`` as in :meth:`plan`."""
        plan = self.plan(q_len, kv_len, **geometry)
        pairs = plan.batch * plan.heads * plan.q_len * plan.kv_len
        return plan.count() / pairs if pairs else 0.0

    def flops(self, q_len: int, kv_len: int, head_dim: int, **geometry: typing.Any) -> int:
        """Floating-point operations of attention under the mask: 4 * head_dim for each pair that attends."""
        return 4 * head_dim * self.count(q_len, kv_len, **geometry)

    def empty_rows(self, q_len: int, kv_len: int, **geometry: typing.Any) -> BoolArray:
        """Bool array (batch, heads, q_len), True where a query sees no key; ``geometry`` as in :meth:`plan`."""
        return self.plan(q_len, kv_len, **geometry).empty_rows()

    def to_bool(
        self,
        q_len: int,
        kv_len: int,
        *,
        batch: int = 1,
        heads: int = 1,
        q_offset: Lengths = None,
        kv_lengths: Lengths = None,
        out: BoolArray | None = None,
        device: str | None = None,
    ) -> BoolArray:
        """Array (batch, heads, q_len, kv_len), True where the query attends; arguments as in :meth:`plan`.

        ``device="cuda"`` (or an ``out`` on a device) makes it there, without waiting: a ``maskattn.cuda.Array``, which
        other libraries take without a copy (``torch.from_dlpack``, ``cupy.asarray``).
        """
        from maskattn.masks.arrays import filled

        return filled(
            self, np.dtype(np.bool_), True, False, (q_len, kv_len, batch, heads, q_offset, kv_lengths), out, device
        )

    def to_ignore(
        self,
        q_len: int,
        kv_len: int,
        *,
        batch: int = 1,
        heads: int = 1,
        q_offset: Lengths = None,
        kv_lengths: Lengths = None,
        out: BoolArray | None = None,
        device: str | None = None,
    ) -> BoolArray:
        """Array (batch, heads, q_len, kv_len), True where the key is ignored ("1 = ignore"); as :meth:`to_bool`."""
        from maskattn.masks.arrays import filled

        return filled(
            self, np.dtype(np.bool_), False, True, (q_len, kv_len, batch, heads, q_offset, kv_lengths), out, device
        )

    def to_additive(
        self,
        q_len: int,
        kv_len: int,
        dtype: npt.DTypeLike = np.float32,
        *,
        batch: int = 1,
        heads: int = 1,
        q_offset: Lengths = None,
        kv_lengths: Lengths = None,
        out: npt.NDArray[typing.Any] | None = None,
        device: str | None = None,
    ) -> npt.NDArray[typing.Any]:
        """Array (batch, heads, q_len, kv_len) of ``dtype``: 0 where the query attends, else -inf; as :meth:`to_bool`.

        Raises:
            TypeError: ``dtype`` has no -inf (float16, bfloat16, float32 and float64 do).
        """
        floating = np.dtype(dtype)
        if floating not in _FLOATS and floating.name != "bfloat16":
            raise TypeError(f"dtype must be a floating type with -inf, got {floating}; pass np.float32")
        from maskattn.masks.arrays import filled

        return filled(self, floating, 0, -np.inf, (q_len, kv_len, batch, heads, q_offset, kv_lengths), out, device)

    def to_bits(
        self,
        q_len: int,
        kv_len: int,
        *,
        batch: int = 1,
        heads: int = 1,
        q_offset: Lengths = None,
        kv_lengths: Lengths = None,
        out: npt.NDArray[np.uint8] | None = None,
        device: str | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Array (batch, heads, q_len, ceil(kv_len / 8)): bit ``j`` of byte ``i`` is 1 where key ``8 i + j`` attends.

        ``np.packbits(mask.to_bool(...), axis=-1, bitorder="little")``, arguments as there; bits past ``kv_len`` are 0.
        """
        from maskattn.masks.arrays import bits

        return bits(self, (q_len, kv_len, batch, heads, q_offset, kv_lengths), out, device)

    def explain(
        self, b: int, h: int, q_pos: int, kv_pos: int, *, q_offset: int = 0, kv_length: int | None = None
    ) -> str:
        """One sentence: which terms let the query at ``q_pos`` see the key at ``kv_pos``, or hide it.

        It begins with "seen", "hidden by" or, for a key at or past ``kv_length``, "does not exist". ``q_offset`` and
        ``kv_length`` are as in :meth:`allows`.

        >>> from maskattn.masks import Causal, SlidingWindow
        >>> (Causal() & SlidingWindow(left=128)).explain(0, 0, 131, 0)
        'hidden by SlidingWindow(left=128): distance 131; Causal allows'

        Raises:
            ValueError: a position that the mask does not reach, or before the first query or key.
        """
        from maskattn.masks.explain import explain

        return explain(self, b, h, q_pos, kv_pos, q_offset=q_offset, kv_length=kv_length)

    def detail(self, b: int, h: int, q_pos: int, kv_pos: int) -> str:
        """The numbers that this leaf's answer hangs on, for :meth:`explain`; "" if its parameters say it all."""
        return ""

    def draw(
        self,
        q_len: int,
        kv_len: int,
        *,
        q_offset: Lengths = None,
        kv_lengths: Lengths = None,
        batch_index: int = 0,
        head: int = 0,
        width: int | None = None,
    ) -> str:
        """The mask of one sequence and head as text, scaled down to ``width`` characters (default: the terminal's)."""
        from maskattn.masks.picture import draw
        from maskattn.masks.view import View

        return draw(View.of(self, q_len, kv_len, q_offset, kv_lengths, batch_index, head), width)

    def plot(
        self,
        q_len: int,
        kv_len: int,
        *,
        q_offset: Lengths = None,
        kv_lengths: Lengths = None,
        batch_index: int = 0,
        head: int = 0,
        tiles: bool = False,
        other: Mask | None = None,
        ax: typing.Any = None,
    ) -> typing.Any:
        """The mask of one sequence and head as a matplotlib picture; needs the extra ``plot``.

        Args:
            q_len, kv_len, q_offset, kv_lengths: as in :meth:`plan`.
            batch_index, head: which sequence and head.
            tiles: also the tiles of 64 x 64 that are full or partial; empty ones stay bare.
            other: a second mask; four colours then say what only one, both or neither of the masks shows.
            ax: matplotlib Axes to draw on; default: of a new figure.

        Returns:
            The Axes: positions of keys to the right, of queries down. A cell of a large mask stands for several pairs.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from maskattn.masks.picture import plot
        from maskattn.masks.view import View

        return plot(View.of(self, q_len, kv_len, q_offset, kv_lengths, batch_index, head), other, tiles=tiles, ax=ax)

    def _repr_html_(self) -> str:
        from maskattn.masks.svg import notebook

        return notebook(self)
