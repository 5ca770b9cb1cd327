"""``attention_weights`` and what is made of it, of arrays of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskattn import _core
from maskattn.cuda.call import Results
from maskattn.cuda.keys import Keys, keys_of
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Kind, Place, kind_of, place_of
from maskattn.cuda.plans import plan_of
from maskattn.cuda.terms import GivenTerms
from maskattn.weights import check_rows, check_topk


def attention_weights(
    q: Any,
    k: Any,
    *,
    stage: str,
    rows: Any,
    mask: Any,
    bias: Any,
    scale: float | None,
    softcap: float,
    sinks: Any,
    kv_lengths: Any,
    q_offset: Any,
    precision: str | None,
) -> Any:
    """:func:`maskattn.attention_weights` on a device; ``stage`` is one, and ``rows`` is the host's."""
    if stage in ("scores", "softcap"):  # before bias and mask; what does not exist has no score all the same
        if hasattr(k, "k_pool"):  # knows its lengths
            pass
        elif isinstance(mask, compiled.Plan) and kv_lengths is None:
            kv_lengths = mask.kv_lengths
        elif isinstance(mask, _core.MaskPlan) and kv_lengths is None:
            kv_lengths = mask.kv_lengths if mask.batch > 1 else mask.kv_lengths[0]
        mask = bias = None
    given = GivenTerms(bias, scale, 0.0 if stage == "scores" else softcap, sinks, precision)
    place = place_of("q", q)
    with place.current():
        asked = _asked(place, q, k, mask, given, kv_lengths, q_offset, rows)
        results = asked.results((asked.row_count, asked.keys.kv_len), asked.q.dtype)
        compiled.attention_weights(
            asked.q, asked.keys.k, results.out, *asked.rest, asked.rows, stage == "softmax", place.stream
        )
        return results.finished()[0]


def attention_topk(
    q: Any,
    k: Any,
    topk: int,
    *,
    rows: Any,
    mask: Any,
    bias: Any,
    scale: float | None,
    softcap: float,
    sinks: Any,
    kv_lengths: Any,
    q_offset: Any,
    precision: str | None,
) -> tuple[Any, Any]:
    """:func:`maskattn.attention_topk` on a device; ``rows`` is the host's."""
    given, place = GivenTerms(bias, scale, softcap, sinks, precision), place_of("q", q)
    count = check_topk(topk, None)
    with place.current():
        asked = _asked(place, q, k, mask, given, kv_lengths, q_offset, rows, count)
        shape = asked.row_count, count
        results = asked.results(shape, "int64")
        weights = results.floats((*asked.q.shape[:2], *shape))
        compiled.largest_weights(asked.q, asked.keys.k, results.out, weights, *asked.rest, asked.rows, place.stream)
        keys, weights = results.finished()
    return keys, weights


def attention_key_sums(
    q: Any,
    k: Any,
    *,
    mask: Any,
    bias: Any,
    scale: float | None,
    softcap: float,
    sinks: Any,
    kv_lengths: Any,
    q_offset: Any,
    precision: str | None,
) -> Any:
    """:func:`maskattn.attention_key_sums` on a device."""
    given, place = GivenTerms(bias, scale, softcap, sinks, precision), place_of("q", q)
    with place.current():
        asked = _asked(place, q, k, mask, given, kv_lengths, q_offset)
        results = asked.results((asked.keys.kv_len,), "float32")
        compiled.weights_per_key(asked.q, asked.keys.k, results.out, *asked.rest, place.stream)
        return results.finished()[0]


if TYPE_CHECKING:
    _Array = compiled.Array | None
    #: Plan, terms in their order, and the pages.
    _Rest = tuple[
        compiled.Plan, _Array, float, float, _Array, _Array, _Array, int, tuple[compiled.Array, _Array, _Array] | None
    ]


class _Asked(NamedTuple):
    """A call: arrays of ours, and ``rest``, which the module takes behind its results; ``rows`` None: all."""

    place: Place
    kind: Kind
    q: compiled.Array
    keys: Keys
    rest: _Rest
    rows: compiled.Array | None
    row_count: int

    def results(self, shape: tuple[int, ...], dtype: str) -> Results:
        """Of each head."""
        return Results(self.place, self.kind, (*self.q.shape[:2], *shape), dtype, None)


def _asked(
    place: Place,
    q: Any,
    k: Any,
    mask: Any,
    given: GivenTerms,
    kv_lengths: Any,
    q_offset: Any,
    rows: Any = None,
    topk: int | None = None,
) -> _Asked:
    """The call on the device; what the host can check has been, before a mask becomes a plan there."""
    ours = place.borrow("q", q)
    keys = keys_of(place, Place.borrow, ours, k, k, mask, kv_lengths)
    batch, heads, q_len, head_dim = ours.shape
    chosen = check_rows(rows, q_len)
    if topk is not None:
        check_topk(topk, keys.kv_len)
    terms = given.on(place, head_dim)
    plan = plan_of(place, keys.mask, q_len, keys.kv_len, batch, heads, q_offset, keys.kv_lengths)
    on_device = None if chosen is None else place.to_device(np.asarray(chosen, np.int32))
    count = q_len if chosen is None else len(chosen)
    return _Asked(place, kind_of(q), ours, keys, (plan, *terms, keys.pages), on_device, count)
