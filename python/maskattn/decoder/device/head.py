"""The head on the device: of scores that nobody reads, only the best ones come back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn._core import PackedWeight
from maskattn.cuda.module import compiled
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.device.rows import DeviceRows
from maskattn.decoder.device.uploading import Uploads, on_device
from maskattn.decoder.heads import LanguageHead


@dataclass(frozen=True, eq=False)
class DeviceHead(LanguageHead):
    """A :class:`LanguageHead` whose map is on the device as well."""

    device: compiled.DecoderDevice
    scorer: compiled.DeviceHead

    @classmethod
    def of(cls, head: LanguageHead, uploads: Uploads) -> DeviceHead:
        """Where its weight has been copied for the embeddings, it is not copied again."""
        assert isinstance(head.map.weight, PackedWeight)
        weight, bias = uploads((head.map.weight, head.map.bias))
        scorer = compiled.DeviceHead(uploads.device, weight, bias, float(head.scale), float(head.softcap))
        return cls(head.map, head.scale, head.softcap, head.tied, uploads.device, scorer)

    @property
    def chooses(self) -> bool:
        """No: the device finds few."""
        return False

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """As of any head."""
        scores: FloatArray = self.scorer.scores(self._rows(hidden)).numpy()
        return scores.reshape(*hidden.shape[:-1], -1)

    def best(self, hidden: FloatArray) -> IntArray:
        """As of any head."""
        tokens: IntArray = self.scorer.best(self._rows(hidden), 1, False)[1][:, 0]
        return tokens

    def most_probable(self, hidden: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """As of any head."""
        scores, tokens, logsumexp = self.scorer.best(self._rows(hidden), count, True)
        return scores - logsumexp[:, None], tokens

    def _rows(self, hidden: FloatArray | DeviceRows) -> compiled.DeviceArray:
        if isinstance(hidden, DeviceRows):
            return hidden.compact()
        return on_device(self.device, np.ascontiguousarray(hidden.reshape(-1, hidden.shape[-1]), np.float32))
