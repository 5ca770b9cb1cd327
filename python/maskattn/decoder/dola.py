"""DoLa: tokens that have become more probable from an earlier layer to the last one (arXiv:2309.03883, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.generate import Batch
from maskattn.decoder.model import Transformer
from maskattn.decoder.options import Options
from maskattn.decoder.rules import OpenState
from maskattn.decoder.state import DecoderState

#: Tokens less probable than this share of the most probable one are out.
_RELATIVE_TOP = 0.1


def read(options: Options, model: Transformer, limits: Sequence[int] | None) -> OpenState | None:
    """None where ``dola_layers`` does not ask for it.

    Raises:
        TypeError, ValueError: it is not as GenerationOptions says, or the model has an encoder.
    """
    value = options.get("dola_layers")
    if value is None:
        return None
    if model.encoder is not None or model.decoder is None:
        raise options.wrong("dola_layers", f"None for a model with an encoder ({model.family.name})")
    if model.head is None or model.head.map.in_features != model.decoder.sizes.width:
        raise options.wrong("dola_layers", "None for a model whose layers are wider than its head")
    contrastive = options.get("penalty_alpha") and not options.flag("do_sample")
    guided = options.get("guidance_scale") not in (None, 1)
    if (options.integer("num_beams", 1) or 1) > 1 or contrastive or guided or options.ids("shortlist"):
        raise options.wrong("dola_layers", "None with beams, penalty_alpha, guidance_scale or a shortlist")
    return partial(DolaState, layers=_layers(options, model))


def _layers(options: Options, model: Transformer) -> list[int]:
    """The earlier layers, as ``transformers`` chooses them; a number stands for what goes into that layer."""
    value = options.get("dola_layers")
    assert model.decoder is not None
    assert model.head is not None
    last = len(model.decoder.layers)
    half = last // 2
    if value == "high":
        return list(range(half if last <= 40 else last - 20, last, 2))
    if value == "low":
        # Embeddings that are the head's too predict the token that has just been read.
        start = min(2, last - 1) if model.head.tied and last > 1 else 0
        return list(range(start, half if last <= 40 else 20, 2)) or [start]
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise options.wrong("dola_layers", '"low", "high" or a list of layers', TypeError)
    if not all(isinstance(layer, int | np.integer) and not isinstance(layer, bool) for layer in value):
        raise options.wrong("dola_layers", '"low", "high" or a list of layers', TypeError)
    if len(value) == 0 or not all(0 <= layer < last for layer in value):
        raise options.wrong("dola_layers", f"layers from 0 to {last - 1}")
    return [int(layer) for layer in value]


class DolaState(DecoderState):
    """A state that also keeps what goes into earlier layers, of each sequence's last token."""

    def __init__(self, model: Transformer, batch: Batch, layers: Sequence[int], *, branches: bool = False) -> None:
        self._layers = layers
        self._earlier = np.zeros((len(layers), 0, 0), np.float32)
        super().__init__(model, batch.prompts, batch.limits, batch.memory, batch.prefix, branches=branches)

    def reorder(self, sequences: IntArray, *, within: bool = False) -> None:
        """As of any state."""
        super().reorder(sequences, within=within)
        self._earlier = self._earlier[:, sequences]

    def contrast(self, logits: FloatArray, rows: IntArray | None = None) -> FloatArray:
        """``log p_last - log p_earlier`` for each sequence's own earlier layer, -inf for what is improbable.

        ``transformers`` takes one layer for all sequences of a batch, so that these depend on one another.
        """
        assert self._model.head is not None
        earlier = self._earlier if rows is None else self._earlier[:, rows]
        with np.errstate(divide="ignore"):
            last = _log_softmax(logits)
            before = _log_softmax(self._model.head.map(earlier))
        chosen = before[_divergence(last, before).argmax(axis=0), np.arange(len(last))]
        improbable = last < last.max(axis=1, keepdims=True) + np.float32(np.log(_RELATIVE_TOP))
        contrasted: FloatArray = np.where(improbable, np.float32(-np.inf), last - chosen)
        return contrasted

    def _step(self, tokens: IntArray) -> FloatArray:
        last: FloatArray = self._decode(tokens[:, None])[:, 0]
        return last

    def _decode(self, tokens: IntArray, new_lengths: IntArray | None = None) -> FloatArray:
        taps = dict.fromkeys(self._layers, np.zeros(0, np.float32))
        starts = self._cache[0].lengths.copy()
        states = self._model.decode(
            tokens, self._memory, self._cache, new_lengths=new_lengths, prefix=self._prefix, taps=taps
        )
        self.states = states
        last = self._cache[0].lengths - starts - 1
        self._earlier = np.stack([taps[layer][np.arange(len(tokens)), last] for layer in self._layers])
        return states


def _log_softmax(scores: FloatArray) -> FloatArray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    log_probs: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probs


def _divergence(last: FloatArray, earlier: FloatArray) -> FloatArray:
    """As ``transformers`` measures it, of log-probabilities (batch, vocab) and (layers, batch, vocab).

    Its two terms are divergences of the mean from either distribution, not of either from the mean as in the paper.

    Returns:
        shape (layers, batch).
    """
    mean = (np.exp(last) + np.exp(earlier)) / 2
    divergence: FloatArray = (mean * (2 * np.log(mean) - last - earlier)).mean(axis=-1)
    return divergence
