"""Memory of large arrays that are gone serves new ones, and that of arrays which somebody still looks at never does."""

import numpy as np

from maskattn import _core

FLOAT32 = np.dtype(np.float32)
LARGE = (3, 1 << 19)  # 6 MiB


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_new_array_takes_the_memory_of_one_that_is_gone() -> None:
    array = _core.empty(FLOAT32, LARGE)
    assert array.shape == LARGE
    assert array.dtype == FLOAT32
    assert array.flags.carray
    place = address(array)
    del array
    assert address(_core.empty(np.dtype(np.int16), (2 * LARGE[0], LARGE[1]))) == place


def test_nobody_takes_the_memory_of_a_view() -> None:
    view = _core.empty(FLOAT32, LARGE)[1:, ::2].T
    view[:] = 1
    for _ in range(4):
        _core.empty(FLOAT32, LARGE)[:] = 2
    assert (view == 1).all()


def test_arrays_of_all_sizes_are_apart() -> None:
    rng = np.random.default_rng(0)
    alive: list[np.ndarray] = []
    for i in range(200):
        array = _core.empty(FLOAT32, (int(rng.integers(0, 1 << 20)),))
        array[:] = i
        alive.append(array)
        if len(alive) > 6:
            del alive[int(rng.integers(len(alive)))]
        for held in alive:
            assert (held == held[:1]).all()
    assert len({address(array) for array in alive}) == len(alive)


def test_little_memory_is_kept() -> None:
    most, bytes_of = 64 << 20, np.dtype(np.uint8)
    blocks = [_core.empty(bytes_of, (40 << 20,)) for _ in range(3)]  # more than half of it
    del blocks
    assert 40 << 20 <= _core.recyclable_bytes() <= most
    _core.empty(bytes_of, (most + 1,))
    assert _core.recyclable_bytes() == 0  # what was too small has made room, and it was too large itself
    blocks = [_core.empty(bytes_of, (10 << 20,)) for _ in range(9)]
    del blocks
    assert _core.recyclable_bytes() == 60 << 20
