"""Attention for arrays of one geometry, prepared once and called often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy.typing as npt

from maskattn import _core, arguments
from maskattn.arguments import FloatArray, Lengths, MaskLike, Options, Precision

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from maskattn._core import PreparedAttention
    from maskattn.interop import SupportsDLPack


@overload
def prepare(
    q: SupportsDLPack, k: SupportsDLPack, v: SupportsDLPack, *, return_lse: Literal[False] = ...,
    **options: Unpack[Options],
) -> PreparedAttention[FloatArray]: ...  # fmt: skip
@overload
def prepare(
    q: SupportsDLPack, k: SupportsDLPack, v: SupportsDLPack, *, return_lse: Literal[True],
    **options: Unpack[Options],
) -> PreparedAttention[tuple[FloatArray, FloatArray]]: ...  # fmt: skip
def prepare(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: MaskLike = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: npt.ArrayLike | None = None,
    kv_lengths: Lengths = None,
    q_offset: Lengths = None,
    precision: Precision | None = None,
    return_lse: bool = False,
    threads: int | None = None,
) -> PreparedAttention[Any]:
    """:func:`attention` with everything but the arrays looked at once: for small calls that come often.

    ``call = prepare(q, k, v, ...)`` checks its arguments and lowers the mask; ``call(q, k, v, *, out=None,
    kv_lengths=None)`` then checks its arrays alone and gives, bit for bit, what
    ``attention(q, k, v, ..., out=out, kv_lengths=kv_lengths)`` gives.

    Args:
        q, k, v: examples of the arrays to come, of which only shapes and dtypes count (``np.empty`` will do). Strides
            may differ from call to call.
        mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, return_lse: as in :func:`attention`. A bias
            array is borrowed, and read in every call; a plan that grows afterwards is kept as it is now.
        threads: at most this many; default :func:`~maskattn.num_threads` at the time of each call.

    Returns:
        A callable for NumPy arrays of these shapes and dtypes, for any number of Python threads at once. With ``out``,
        on one thread, it allocates nothing after its first call. ``kv_lengths``, an integer or shape (batch,), takes
        the place of the prepared one, as when a decoder's cache of fixed capacity fills up; not where there is a mask
        or a ``q_offset``, which were lowered for their lengths (a query that is the last to be decoded needs neither).
        Prepared with CUDA arrays, it is one for those: the plan is kept on the device, a call launches work on the
        current stream of ``q``'s library, and ``kv_lengths`` may be an array there; results are of ``q``'s library.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention`, and likewise from the call, for arrays that
            are not like the examples; nothing is written then.

    >>> import numpy as np
    >>> q, kv = np.ones((1, 8, 1, 64), np.float32), np.ones((1, 2, 500, 64), np.float32)
    >>> call = prepare(q, kv, kv)
    >>> call(q, kv, kv, out=np.empty_like(q), kv_lengths=3).shape
    (1, 8, 1, 64)
    """
    if hasattr(k, "k_pool"):
        raise TypeError(f"k must be an array, got a cache's {type(k).__name__}, which grows; call attention with it")
    if _core.is_cuda(q):
        from maskattn.cuda.prepared import PreparedOnDevice
        from maskattn.cuda.terms import GivenTerms

        terms = GivenTerms(bias, scale, softcap, sinks, precision)
        on_device: Any = PreparedOnDevice(q, k, v, mask, q_offset, kv_lengths, terms, return_lse)
        return cast("PreparedAttention[Any]", on_device)
    queries, keys, values, rest = arguments.prepare(
        q, k, v, mask, bias, scale, softcap, sinks, kv_lengths, q_offset, precision, threads
    )
    return _core.prepare_attention(queries, keys, values, *rest[1:], return_lse, threads)
