"""``attention_weights`` of arrays of a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskattn import _core
from maskattn.cuda.call import Results
from maskattn.cuda.keys import keys_of
from maskattn.cuda.module import compiled
from maskattn.cuda.places import Place, kind_of, place_of
from maskattn.cuda.plans import plan_of
from maskattn.cuda.terms import GivenTerms
from maskattn.weights import check_rows


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
    place, kind = place_of("q", q), kind_of(q)
    if stage in ("scores", "softcap"):  # before bias and mask; what does not exist has no score all the same
        if hasattr(k, "k_pool"):  # knows its lengths
            pass
        elif isinstance(mask, compiled.Plan) and kv_lengths is None:
            kv_lengths = mask.kv_lengths
        elif isinstance(mask, _core.MaskPlan) and kv_lengths is None:
            kv_lengths = mask.kv_lengths if mask.batch > 1 else mask.kv_lengths[0]
        mask = bias = None
    given = GivenTerms(bias, scale, 0.0 if stage == "scores" else softcap, sinks, precision)
    with place.current():
        q = place.borrow("q", q)
        keys = keys_of(place, Place.borrow, q, k, k, mask, kv_lengths)
        batch, heads, q_len, head_dim = q.shape
        chosen = check_rows(rows, q_len)
        on_device = None if chosen is None else place.to_device(np.asarray(chosen, np.int32))
        terms = given.on(place, head_dim)
        plan = plan_of(place, keys.mask, q_len, keys.kv_len, batch, heads, q_offset, keys.kv_lengths)
        count = q_len if chosen is None else len(chosen)
        results = Results(place, kind, (batch, heads, count, keys.kv_len), q.dtype, None)
        compiled.attention_weights(
            q, keys.k, results.out, plan, *terms, keys.table, on_device, stage == "softmax", place.stream
        )
        return results.finished()[0]
