"""A checkpoint's tensors, their shapes checked, as the layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from maskattn import masks
from maskattn._core import PackedWeight
from maskattn.decoder.activations import activation
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.inputs import INPUTS, Embed
from maskattn.decoder.layers import DecoderLayer, EncoderLayer, FeedForward, GatedFeedForward
from maskattn.decoder.multi_head import MultiHeadAttention
from maskattn.decoder.norms import NORMS, PLACEMENTS, Norm
from maskattn.decoder.positions import POSITIONS, Positions
from maskattn.decoder.projection import Linear
from maskattn.decoder.settings import Settings, Sizes
from maskattn.families import Family

L = TypeVar("L", EncoderLayer, DecoderLayer)


@dataclass(frozen=True, eq=False)
class LayerStack(Generic[L]):
    """An encoder or a decoder, float32: what goes in, positions, layers with their masks, and what comes behind."""

    sizes: Sizes
    embed: Embed
    positions: Positions
    layers: Sequence[L]
    masks: tuple[masks.Mask, ...]
    final: tuple[Callable[[FloatArray], FloatArray], ...]


class Reader:
    """Reads the tensors of one stack by our names."""

    def __init__(self, checkpoint: Checkpoint, family: Family, settings: Settings, dtype: str) -> None:
        self.checkpoint, self.settings, self.declared, self.dtype = checkpoint, settings, settings.stack, dtype
        self.sizes, self.base = settings.sizes, base_of(checkpoint, family)
        for name, table in (("norm", NORMS), ("placement", PLACEMENTS), ("positions", POSITIONS)):
            if getattr(settings, name) not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, got {getattr(settings, name)!r}")
        self.placement = PLACEMENTS[settings.placement]
        self.activation = activation(f"the activation of the {settings.side} in config.json", settings.activation)

    def stack(self, make_layer: Callable[[Reader, int], L]) -> LayerStack[L]:
        """All of it; ``make_layer`` is one of the two functions below."""
        count = range(self.sizes.layers)
        return LayerStack(
            self.sizes,
            INPUTS[self.declared.inputs](self.settings, self),
            POSITIONS[self.settings.positions](self.settings, self),
            tuple(make_layer(self, i) for i in count),
            tuple(self.settings.mask(i) for i in count),
            self._final(),
        )

    def table(self, name: str, *shape: int) -> FloatArray:
        """A tensor that is no map, by its name in ``tensors``."""
        return self.checkpoint.tensor(self.in_file(self.declared.tensors[name]), shape)

    def embeddings(self) -> PackedWeight:
        """The table of token embeddings."""
        names = self.in_file(self.declared.tensors["embed"])
        return self.checkpoint.packed([(names, self.sizes.vocab)], self.sizes.embedding_width, self.dtype)

    def in_file(self, names: Sequence[str]) -> list[str]:
        """The names with {base} and {side} filled in."""
        return [self._in_file(name) for name in names]

    def names_of_tables(self) -> list[str]:
        """All names that a file may have for the tables, those that another took the place of included."""
        return [name for names in self.declared.tensors.values() for name in self.in_file(names)]

    def has(self, module: str) -> bool:
        """Whether the family declares such a module."""
        return module in self.declared.modules

    def norm(self, module: str, layer: int = 0, width: int | None = None) -> Norm:
        kind, shape = NORMS[self.settings.norm], (width or self.sizes.width,)
        name = self._in_file(self.declared.modules[module], layer)
        if self.settings.norm == "layer without weights":
            return kind.make(np.ones(shape, np.float32), None, self.settings.norm_eps)
        # The second names are those of TensorFlow, from which old checkpoints were converted.
        weight = self.checkpoint.tensor([f"{name}.weight", f"{name}.gamma"], shape)
        bias = self.checkpoint.tensor([f"{name}.bias", f"{name}.beta"], shape) if kind.biased else None
        return kind.make(weight, bias, self.settings.norm_eps)

    def linear(self, module: str, out: int, width: int, layer: int = 0) -> Linear:
        """A map of ``width`` inputs, with a bias if the family says so."""
        return self._maps([module], [out], width, layer)[0]

    def convolution(self, module: str, out: int, channels: int, taps: int) -> Linear:
        """A convolution over time as a map from ``taps`` neighbours, channels innermost."""
        name = self._in_file(self.declared.modules[module])
        weight = self.checkpoint.arranged([f"{name}.weight"], (out, channels, taps), self.dtype, _channels_innermost)
        return Linear(weight, self.checkpoint.tensor([f"{name}.bias"], (out,)))

    def attention(self, kind: str, layer: int) -> MultiHeadAttention:
        sizes, head_dim = self.sizes, self.sizes.head_dim
        outs = [sizes.heads * head_dim, sizes.kv_heads * head_dim, sizes.kv_heads * head_dim]
        q, k, v = self._maps_of(f"{kind}.qkv", [f"{kind}.{part}" for part in "qkv"], outs, sizes.width, layer)
        norms = [
            self.norm(f"{kind}.{part}_norm", layer, head_dim) if self.has(f"{kind}.{part}_norm") else None
            for part in "qk"
        ]
        out = self.linear(f"{kind}.out", sizes.width, outs[0], layer)
        scale, softcap = self.settings.attention_scale(layer), self.settings.attention_softcap
        dtype = attention_dtype(self.dtype)
        return MultiHeadAttention(q, k, v, out, sizes.heads, sizes.kv_heads, scale, softcap, norms[0], norms[1], dtype)

    def feed_forward(self, layer: int) -> FeedForward | GatedFeedForward:
        width, ffn = self.sizes.width, self.sizes.ffn
        if not self.settings.gated:
            up, down = self.linear("ffn.up", ffn, width, layer), self.linear("ffn.down", width, ffn, layer)
            return FeedForward(up, down, self.activation)
        gate, up = self._maps_of("ffn.gate_up", ["ffn.gate", "ffn.gated"], [ffn, ffn], width, layer)
        return GatedFeedForward(gate, up, self.linear("ffn.down", width, ffn, layer), self.activation)

    def inner_norm(self, module: str, layer: int) -> Norm | None:
        return self.norm(module, layer) if self.placement.inside else None

    def _maps_of(self, fused: str, parts: list[str], outs: list[int], width: int, layer: int) -> list[Linear]:
        """Maps of one input, which the file has one by one or as one."""
        if not self.has(fused):
            return self._maps(parts, outs, width, layer)
        order = LAYOUTS[self.declared.fused[fused]](outs, self.sizes.heads)
        if order is None:
            return _parts(self.linear(fused, sum(outs), width, layer), outs)

        def in_order(rows: FloatArray) -> FloatArray:
            return rows[order]

        name, shape = self._in_file(self.declared.modules[fused], layer), (sum(outs), width)
        weight, bias = self.checkpoint.arranged([f"{name}.weight"], shape, self.dtype, in_order), None
        if fused.startswith(self.settings.biases):
            bias = in_order(self.checkpoint.tensor([f"{name}.bias"], shape[:1]))
        return _parts(Linear(weight, bias), outs)

    def _maps(self, modules: list[str], outs: list[int], width: int, layer: int) -> list[Linear]:
        """Maps of one input, in one memory, so that they can be one product."""
        names = [self._in_file(self.declared.modules[module], layer) for module in modules]
        parts = [([f"{name}.weight"], out) for name, out in zip(names, outs, strict=True)]
        weight = self.checkpoint.packed(parts, width, self.dtype, transposed=self.declared.transposed)
        maps = _parts(Linear(weight), outs)
        for i, (module, name) in enumerate(zip(modules, names, strict=True)):
            if module.startswith(self.settings.biases):
                maps[i] = Linear(maps[i].weight, self.checkpoint.tensor([f"{name}.bias"], (outs[i],)))
        return maps

    def _final(self) -> tuple[Callable[[FloatArray], FloatArray], ...]:
        final: list[Callable[[FloatArray], FloatArray]] = []
        if self.settings.final_norm:
            final.append(self.norm("norm"))
        if self.sizes.embedding_width != self.sizes.width:
            final.append(self.linear("project_out", self.sizes.embedding_width, self.sizes.width))
        return tuple(final)

    def _in_file(self, name: str, layer: int = 0) -> str:
        return name.format(base=self.base, side=self.settings.side, layer=layer)


def attention_dtype(dtype: str) -> str:
    """Of queries, keys and values, where matrices are stored in ``dtype``."""
    return "float32" if dtype == "float32" else "bfloat16"


def encoder_layer(reader: Reader, layer: int) -> EncoderLayer:
    return EncoderLayer(
        reader.attention("self", layer),
        reader.norm("self.norm", layer),
        reader.feed_forward(layer),
        reader.norm("ffn.norm", layer),
        reader.placement,
        reader.inner_norm("self.inner_norm", layer),
        reader.inner_norm("ffn.inner_norm", layer),
    )


def decoder_layer(reader: Reader, layer: int) -> DecoderLayer:
    has_cross = reader.has("cross.q")
    return DecoderLayer(
        reader.attention("self", layer),
        reader.norm("self.norm", layer),
        reader.attention("cross", layer) if has_cross else None,
        reader.norm("cross.norm", layer) if has_cross else None,
        reader.feed_forward(layer),
        reader.norm("ffn.norm", layer),
        reader.placement,
        reader.inner_norm("self.inner_norm", layer),
        reader.inner_norm("ffn.inner_norm", layer),
    )


def base_of(checkpoint: Checkpoint, family: Family) -> str:
    """What stands before the names of the bare model: nothing where it was saved alone."""
    return family.base if any(name.startswith(family.base) for name in checkpoint.names()) else ""


def _parts(whole: Linear, outs: list[int]) -> list[Linear]:
    ends = np.cumsum(outs)
    return [whole.rows(int(end) - out, int(end)) for end, out in zip(ends, outs, strict=True)]


def _channels_innermost(weight: FloatArray) -> FloatArray:
    """(outputs, channels, taps) -> (outputs, taps * channels)."""
    return np.ascontiguousarray(weight.transpose(0, 2, 1)).reshape(len(weight), -1)


def _by_head(outs: list[int], heads: int) -> IntArray:
    """The rows of all maps for the first head, then those for the second (GPT-NeoX)."""
    rows: IntArray = np.arange(sum(outs)).reshape(heads, len(outs), -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(-1)


#: The order in which a file has the rows of maps that it holds as one; None: one map after the other.
LAYOUTS: Mapping[str, Callable[[list[int], int], IntArray | None]] = {
    "stacked": lambda outs, heads: None,
    "by head": _by_head,
}
