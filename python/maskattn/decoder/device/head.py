"""The head on the device: of scores that nobody reads, only the best ones come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn._core import PackedWeight
from maskattn.cuda.module import load
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.device.rows import DeviceRows
from maskattn.decoder.device.uploading import Uploads, on_device
from maskattn.decoder.heads import LanguageHead


@dataclass(frozen=True, eq=False)
class DeviceHead(LanguageHead):
    """A :class:`LanguageHead` whose map is on the device as well."""

    device: Any
    compiled: Any

    @classmethod
    def of(cls, head: LanguageHead, uploads: Uploads) -> DeviceHead:
        """Where its weight has been copied for the embeddings, it is not copied again."""
        assert isinstance(head.map.weight, PackedWeight)
        weight, bias = uploads((head.map.weight, head.map.bias))
        compiled = load().DeviceHead(uploads.device, weight, bias, float(head.scale), float(head.softcap))
        return cls(head.map, head.scale, head.softcap, head.tied, uploads.device, compiled)

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """As of any head."""
        scores: FloatArray = self.compiled.scores(self._rows(hidden)).numpy()
        return scores.reshape(*hidden.shape[:-1], -1)

    def best(self, hidden: FloatArray) -> IntArray:
        """As of any head."""
        tokens: IntArray = self.compiled.best(self._rows(hidden), 1, False)[1][:, 0]
        return tokens

    def most_probable(self, hidden: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """As of any head."""
        scores, tokens, logsumexp = self.compiled.best(self._rows(hidden), count, True)
        return scores - logsumexp[:, None], tokens

    def _rows(self, hidden: FloatArray | DeviceRows) -> Any:
        if isinstance(hidden, DeviceRows):
            return hidden.compact()
        return on_device(self.device, np.ascontiguousarray(hidden.reshape(-1, hidden.shape[-1]), np.float32))
