from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn import _core
from maskattn.masks.base import BoolArray, Index, Mask

_CFuncPtr: Any = ctypes.CFUNCTYPE(None).__mro__[1]  # the base class of all ctypes functions

#: What a C function pointer looks like: ``int f(int64 b, int64 h, int64 q_pos, int64 kv_pos, void *data)``.
C_SIGNATURE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


@dataclass(frozen=True)
class Function(Mask):
    """What ``f(b, h, q_pos, kv_pos)`` says, kept as a bit a pair; asked when a plan is made, never per attention call.

    ``f`` is a Python callable vectorised like NumPy's functions, or a C function pointer of :data:`C_SIGNATURE`: a
    ``numba.cfunc``, a ``scipy.LowLevelCallable`` or a ctypes function. A callable is asked in tiles of up to 2**20
    pairs: ``b`` and ``h`` are integers, ``q_pos`` has shape (rows, 1), ``kv_pos`` (1, keys), and the answer must
    broadcast to (rows, keys). A C function is called from several threads, once a pair.

    ``f`` must be pure, the same answer whenever it is asked: answers are kept with the mask (up to 256 MB of bits;
    what is more is asked again), so that a longer plan, ``plan.extend`` and a step of decoding ask about new rows and
    new keys only. It is asked about positions of the call's queries and keys that exist, and no others.

    ``per_sequence=False`` (``per_head=False``) says that ``f`` does not look at ``b`` (``h``): it is asked once for all
    then, as 0. ``data`` is the address that a C function gets as its last argument; keep what it points to alive.

    >>> Function(lambda b, h, q, k: (q + k) % 2 == 0, per_sequence=False, per_head=False).to_bool(2, 2).tolist()
    [[[[True, False], [False, True]]]]
    """

    f: Any
    per_sequence: bool = True
    per_head: bool = True
    data: int = 0

    def __post_init__(self) -> None:
        if not callable(self.f) and _pointer(self.f) is None:
            raise TypeError(
                f"f must be a callable f(b, h, q_pos, kv_pos) or a C function pointer, got {type(self.f).__name__}"
            )

    def allows(
        self, b: Index, h: Index, q_pos: Index, kv_pos: Index, *, q_offset: Index = 0, kv_length: Index | None = None
    ) -> BoolArray:
        b, h = (np.asarray(i) * varies for i, varies in ((b, self.per_sequence), (h, self.per_head)))
        pointer = _pointer(self.f)
        if pointer is None:
            answer = np.asarray(self.f(b, h, q_pos, kv_pos))
            shape = np.broadcast_shapes(answer.shape, np.shape(q_pos), np.shape(kv_pos))
            return np.asarray(np.broadcast_to(answer != 0, shape))
        function = C_SIGNATURE(pointer)
        return np.asarray(np.vectorize(lambda *at: function(*at, self.data) != 0, otypes=[bool])(b, h, q_pos, kv_pos))

    def _lower(self) -> _core.MaskExpr:
        pointer = _pointer(self.f)
        if pointer is not None:
            return _core.mask_function(pointer, self.data, self.per_sequence, self.per_head)
        return _core.mask_tiles(self._tile, self.per_sequence, self.per_head)

    def _tile(self, b: int, h: int, q_begin: int, rows: int, kv_begin: int, keys: int) -> BoolArray:
        q_pos, kv_pos = np.arange(q_begin, q_begin + rows)[:, None], np.arange(kv_begin, kv_begin + keys)[None, :]
        answer = np.asarray(self.f(b, h, q_pos, kv_pos))
        try:
            return np.ascontiguousarray(np.broadcast_to(answer != 0, (rows, keys)))
        except ValueError:
            raise ValueError(
                f"f must be vectorised: for q_pos of shape ({rows}, 1) and kv_pos of shape (1, {keys}) its answer must "
                f"broadcast to ({rows}, {keys}), got shape {answer.shape}"
            ) from None


def _pointer(f: Any) -> int | None:
    """The address of a C function, or None for a Python callable."""
    if isinstance(f, _CFuncPtr):
        return ctypes.cast(f, ctypes.c_void_p).value
    if isinstance(getattr(f, "address", None), int):  # numba.cfunc
        return int(f.address)
    if type(f).__name__ == "LowLevelCallable":  # scipy: a tuple whose first element is a capsule
        capsule = tuple.__getitem__(f, 0)
        get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
        get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
        get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        return int(get_pointer(capsule, get_name(capsule)))
    return None
