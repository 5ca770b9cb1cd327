"""What stands on top of a stack: scores of the next token, classes of a sequence or of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn._core import PackedWeight, best_outputs
from maskattn.decoder.activations import Activation, activation
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.projection import Linear
from maskattn.decoder.sampling import log_softmax
from maskattn.decoder.settings import factor, resolve
from maskattn.decoder.weights import Reader, base_of
from maskattn.families import Family, Head

#: So many best tokens are found faster than the scores of all are written.
_SEVERAL = 256


@dataclass(frozen=True, eq=False)
class LanguageHead:
    """``cap(map(scale * hidden))``, where ``cap(x) = softcap * tanh(x / softcap)`` if there is a cap.

    ``tied``: whether the map is the table of the embeddings.
    """

    map: Linear
    scale: np.float32
    softcap: np.float32
    tied: bool

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """(..., width) -> (..., vocab)."""
        scores = self.map(self._scaled(hidden))
        return scores if self.softcap == 0 else np.tanh(scores / self.softcap) * self.softcap

    @property
    def chooses(self) -> bool:
        """Whether any number of best tokens is found without writing the scores of all."""
        return not self.softcap and isinstance(self.map.weight, PackedWeight)

    def best(self, hidden: FloatArray) -> IntArray:
        """(rows, width) -> (rows,): the token with the highest score, the first of equals; scores are not written."""
        weight = self.map.weight
        if self.softcap or not isinstance(weight, PackedWeight):  # a cap may make equals of two scores
            highest: IntArray = self(hidden).argmax(axis=-1)
            return highest
        return best_outputs(weight, self._scaled(hidden), self.map.bias, 1, False, None)[1][:, 0]

    def most_probable(self, hidden: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """(rows, width) -> (rows, count): log-probabilities of the ``count`` most probable tokens, and the tokens."""
        weight = self.map.weight
        if self.softcap or not isinstance(weight, PackedWeight):
            scores = log_softmax(self(hidden))
            tokens = np.argsort(-scores, axis=-1, kind="stable")[:, :count]
            return np.take_along_axis(scores, tokens, axis=-1), tokens
        scores, tokens, logsumexp = best_outputs(weight, self._scaled(hidden), self.map.bias, count, True, None)
        assert logsumexp is not None
        return scores - logsumexp[:, None], tokens

    def log_probabilities(self, hidden: FloatArray) -> FloatArray:
        """(rows, width) -> (rows, vocab), to the bit as :meth:`most_probable_allowed` has them, if it ever does."""
        if not self.chooses:
            return log_softmax(self(hidden))
        assert isinstance(self.map.weight, PackedWeight)
        logsumexp = best_outputs(self.map.weight, self._scaled(hidden), self.map.bias, 1, True, None)[2]
        assert logsumexp is not None
        return self(hidden) - logsumexp[:, None]

    def most_probable_allowed(
        self, hidden: FloatArray, count: int, forbidden: Sequence[set[int]]
    ) -> tuple[FloatArray, IntArray] | None:
        """:meth:`most_probable` of those that are not ``forbidden`` for a row; None: look at the scores of all."""
        several = count + max(map(len, forbidden), default=0)
        if not self.chooses or several > min(_SEVERAL, self.map.out_features):
            return None
        scores, tokens = self.most_probable(hidden, several)
        out = np.array([[token in none for token in own] for own, none in zip(tokens.tolist(), forbidden, strict=True)])
        first = out.argsort(axis=1, kind="stable")[:, :count]
        scores, tokens = np.take_along_axis(scores, first, axis=1), np.take_along_axis(tokens, first, axis=1)
        return (scores, tokens) if (scores > -np.inf).all() else None

    def _scaled(self, hidden: FloatArray) -> FloatArray:
        return hidden if self.scale == 1 else hidden * self.scale


def read_language_head(reader: Reader, family: Family, config: Mapping[str, Any]) -> LanguageHead:
    """Raises ValueError where a tensor is missing, of another shape, or config.json does not say what is needed."""
    sizes, checkpoint = reader.sizes, reader.checkpoint
    names = reader.in_file(family.head)
    if checkpoint.find(names) is None and resolve(family.tied, "tied embeddings", bool, config, family.name):
        names = reader.in_file(reader.declared.tensors["embed"])
    weight = checkpoint.packed([(names, sizes.vocab)], sizes.embedding_width, reader.dtype)
    bias = None
    if family.head_bias:
        bias = checkpoint.tensor(reader.in_file(family.head_bias), (1, sizes.vocab)).reshape(-1)
    return LanguageHead(
        Linear(weight, bias),
        np.float32(factor(family.head_scale, "head_scale", config, family.name)),
        np.float32(factor(family.logits_softcap, "logits_softcap", config, family.name)),
        bool(config.get("tie_word_embeddings", True)),
    )


@dataclass(frozen=True, eq=False)
class Classifier:
    """Maps, each followed by an activation, of a sequence's first hidden state or of each."""

    maps: tuple[tuple[Linear, Activation], ...]
    per_token: bool

    @property
    def labels(self) -> int:
        return self.maps[-1][0].out_features

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """(batch, len, width) -> (batch, labels), or (batch, len, labels)."""
        x = hidden if self.per_token else np.ascontiguousarray(hidden[:, 0])
        for linear, function in self.maps:
            x = function(linear(x))
        return x


def find_head(family: Family, config: Mapping[str, Any]) -> Head | None:
    """The head of the class that config.json names, or None for the bare model."""
    architectures = config.get("architectures") or [""]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ValueError(f"architectures of config.json must be a list of str, got {architectures!r:.60}")
    return next((head for end, head in family.classifiers.items() if architectures[0].endswith(end)), None)


def read_classifier(
    checkpoint: Checkpoint, family: Family, head: Head, width: int, config: Mapping[str, Any] | None
) -> Classifier:
    """The maps of ``head``, the last of which has a row per label.

    Raises:
        ValueError: a tensor is missing or of another shape, or ``id2label`` of ``config`` has another number of labels.
    """
    maps = []
    for i, (name, function) in enumerate(head.maps):
        name = name.format(base=base_of(checkpoint, family))
        out = width
        if config is not None and i == len(head.maps) - 1:
            out = _label_count(checkpoint, f"{name}.weight", config)
        weight = checkpoint.tensor([f"{name}.weight"], (out, width))
        maps.append((Linear(weight, checkpoint.tensor([f"{name}.bias"], (out,))), activation("a head", function)))
    return Classifier(tuple(maps), head.per_token)


def read_pooler(checkpoint: Checkpoint, family: Family, pooler: Head, width: int) -> Classifier | None:
    """The pooler, or None where the file has none."""
    name = pooler.maps[0][0].format(base=base_of(checkpoint, family))
    return (
        None
        if checkpoint.find([f"{name}.weight"]) is None
        else read_classifier(checkpoint, family, pooler, width, None)
    )


def label_names(config: Mapping[str, Any], classifier: Classifier | None) -> list[str]:
    """The names that config.json gives the classes, else LABEL_0, LABEL_1, ..., as in transformers."""
    if classifier is None:
        return []
    names = config.get("id2label") or {}
    return [str(names.get(str(i), f"LABEL_{i}")) for i in range(classifier.labels)]


def _label_count(checkpoint: Checkpoint, name: str, config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(labels)
    return checkpoint.rows(name) if checkpoint.find([name]) else 1
