"""Instruction sets, threads and precision."""

from __future__ import annotations

import os
from typing import Any

from maskattn import _core
from maskattn.arguments import PRECISIONS, Precision, precision_level
from maskattn.version import __version__


def info() -> dict[str, Any]:
    """What this build can do on this machine.

    Returns:
        ``version``; ``isa`` (the instruction set in use), ``isas_built`` and ``isas_runnable`` (worst to best);
        ``threads`` and ``precision`` (of a call that does not say); ``openmp`` (whether calls can use several threads).
    """
    return {
        "version": __version__,
        "isa": _core.current_isa(),
        "isas_built": _core.built_isas(),
        "isas_runnable": _core.runnable_isas(),
        "threads": _core.num_threads(),
        "precision": get_precision(),
        "openmp": _core.has_openmp(),
    }


def runnable_isas() -> list[str]:
    """Names of the instruction sets that this machine can run, worst to best."""
    return _core.runnable_isas()


def set_isa(name: str) -> None:
    """Use the kernels of one instruction set from now on, in every thread (``MASKATTN_ISA`` does so at import).

    Raises:
        TypeError: ``name`` is not a str.
        ValueError: ``name`` is not one of :func:`runnable_isas`.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, one of {', '.join(runnable_isas())}, got {type(name).__name__}")
    _core.set_isa(name)


def num_threads() -> int:
    """Threads of a call that does not say."""
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Set the threads of calls that do not say; the default is ``OMP_NUM_THREADS`` or the machine's processors.

    Raises:
        TypeError, ValueError: ``threads`` is not an integer from 1 to 4096.
    """
    _core.set_num_threads(threads)


def get_precision() -> Precision:
    """How calls that do not say multiply float32 inputs."""
    return PRECISIONS[_core.default_precision()]


def set_precision(precision: Precision) -> None:
    """Set how calls that do not say multiply float32 inputs: ``"highest"`` at first; see :func:`~maskattn.attention`.

    As ``torch.set_float32_matmul_precision``: for the whole process, in every thread.

    Raises:
        TypeError, ValueError: not "highest", "high" or "medium".
    """
    _core.set_default_precision(precision_level(precision))


def get_include() -> str:
    """Folder of the C++ headers (``#include "maskattn/attention.hpp"``)."""
    return os.path.join(os.path.dirname(__file__), "include")


def get_cmake_dir() -> str:
    """Folder of the CMake package, for ``CMAKE_PREFIX_PATH``; it defines ``maskattn::maskattn_core``."""
    return os.path.join(os.path.dirname(__file__), "cmake")
