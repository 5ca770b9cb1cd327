"""The KV cache of a device's layers."""

from __future__ import annotations

from typing import Any

from maskattn.cache import KVCache
from maskattn.cache.pages import Pages
from maskattn.cuda.module import compiled
from maskattn.cuda.pages import DevicePages


class DeviceCache(KVCache):
    """A :class:`~maskattn.KVCache` that a device's layers fill and read; forks and beams copy pages there."""

    def __init__(self, device: compiled.DecoderDevice, *extents: Any, **options: Any) -> None:
        self._device = device
        super().__init__(*extents, **options)

    def _pages(self, *extents: Any) -> Pages:
        device, array = self._device, compiled.DeviceArray
        return DevicePages(lambda shape, dtype: array(device, list(shape), dtype), array.numpy, *extents)
