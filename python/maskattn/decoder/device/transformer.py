"""The forward pass on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from maskattn import masks
from maskattn.cache import KVCache
from maskattn.cuda.module import compiled
from maskattn.decoder.arrays import FloatArray, IntArray
from maskattn.decoder.device.cache import DeviceCache
from maskattn.decoder.device.head import DeviceHead
from maskattn.decoder.device.layers import DeviceLayers
from maskattn.decoder.device.memory import DeviceMemory, DeviceMemoryRows
from maskattn.decoder.device.opening import open_device
from maskattn.decoder.device.rows import DeviceRows
from maskattn.decoder.device.uploading import Uploads
from maskattn.decoder.inputs import TokenEmbedding
from maskattn.decoder.memory import CrossView, Memory, Prefix
from maskattn.decoder.model import Transformer


class DeviceTransformer(Transformer):
    """A :class:`Transformer` whose stacks and head run on a CUDA device; hidden states stay there until looked at.

    Matrices are kept in ``dtype`` there, and so are queries, keys, values and the cache; sums, norms and the residual
    stream are float32. Products are cuBLASLt's, whose choice of a kernel depends on how many rows there are: the last
    bits of a row may depend on its batch, as they do not on the CPU.

    Cross-attention weights are looked at on the host, with the weights that are there, too.

    Raises:
        ImportError: the package was built without CUDA.
        RuntimeError: there is no such device, or no cuBLASLt.
        NotImplementedError: a layer is made of something that the device does not know.
    """

    def __init__(self, host: Transformer, dtype: str, device: str = "cuda") -> None:
        self.family, self.encoder, self.decoder = host.family, host.encoder, host.decoder
        self.classifier, self.pooler, self._host = host.classifier, host.pooler, host
        self._device = open_device(device)
        uploads = Uploads(self._device, dtype)
        self._dtype = uploads.dtype
        self._encoder = None if self.encoder is None else DeviceLayers(self.encoder, uploads)
        self._decoder = None if self.decoder is None else DeviceLayers(self.decoder, uploads)
        self.head = None if host.head is None else DeviceHead.of(host.head, uploads)

    def encode_hidden(
        self, sources: Sequence[Any], segments: Sequence[IntArray] | None = None
    ) -> tuple[FloatArray, IntArray]:
        """As of any model."""
        states, lengths = self._encode_rows(sources, segments)
        hidden: FloatArray = states.numpy()
        return hidden, lengths

    def encode(self, sources: Sequence[Any]) -> Memory:
        """As of any model; keys and values stay on the device."""
        assert self._decoder is not None
        return self._decoder.memory(*self._encode_rows(sources, None))

    def _encode_rows(
        self, sources: Sequence[Any], segments: Sequence[IntArray] | None
    ) -> tuple[compiled.DeviceArray, IntArray]:
        """The encoder's output as the compiled module's array (rows, width), and the lengths of the sources."""
        stack, layers = self.encoder, self._encoder
        assert stack is not None
        assert layers is not None
        options: dict[str, Any] = {}
        if stack.sizes.vocab:
            lengths = np.array([len(source) for source in sources])
            positions = np.concatenate([np.arange(length) for length in lengths])
            options["tokens"] = np.concatenate(sources)
            if segments is not None:
                options["segments"] = np.concatenate(segments)
        else:
            lengths = np.full(len(sources), -(-sources[0].shape[1] // 2))
            positions = np.tile(np.arange(lengths[0]), len(sources))
            assert layers.sound is not None
            options["x"] = layers.sound(np.stack(sources))
        rotation = stack.positions.rotation_of_rows(positions, lengths.repeat(lengths))
        states, _ = layers.run(lengths, rotation=rotation, **options)
        return states, lengths

    def decode(
        self,
        tokens: IntArray,
        memory: Memory | None = None,
        cache: KVCache | None = None,
        *,
        new_lengths: IntArray | None = None,
        prefix: Prefix | None = None,
        view: CrossView | None = None,
        taps: dict[int, FloatArray] | None = None,
        owners: IntArray | None = None,
    ) -> FloatArray:
        """As of any model; the states are :class:`DeviceRows`, which stand for an array.

        Args:
            owners: not looked at: each branch of a tree computes all its rows.
        """
        stack, layers = self.decoder, self._decoder
        assert stack is not None
        assert layers is not None
        if view is not None:
            read = memory.on_host() if isinstance(memory, DeviceMemory) else memory
            return self._host.decode(tokens, read, new_lengths=new_lengths, prefix=prefix, view=view, taps=taps)
        counts = np.full(len(tokens), tokens.shape[1]) if new_lengths is None else new_lengths
        starts = np.zeros(len(tokens), np.int64) if cache is None else cache[0].lengths.astype(np.int64, copy=False)
        options: dict[str, Any] = {"cache": cache, "memory": _on_device(memory)}
        x = None
        if prefix is not None:
            sees_prefix = masks.Padding(prefix.lengths)
            options["seen"] = [mask | sees_prefix for mask in stack.masks]
            if not starts.any():
                assert isinstance(stack.embed, TokenEmbedding)
                x, counts = prefix.before(stack.embed.rows(tokens), new_lengths)
        new = tokens.shape[1] if x is None else x.shape[1]
        real = np.arange(new) < counts[:, None]
        positions = (starts[:, None] + np.arange(new))[real]
        if x is None:
            options["tokens"] = tokens[real]
        else:
            assert isinstance(stack.embed, TokenEmbedding)
            options["x"] = stack.embed.finish(x[real], stack.positions.rows(positions))
        rotation = stack.positions.rotation_of_rows(positions, (starts + counts).repeat(counts))
        states, tapped = layers.run(counts, rotation=rotation, taps=list(taps or ()), **options)
        places = np.full(real.shape, -1)
        places[real] = np.arange(len(positions))
        for layer, rows in zip(taps or (), tapped, strict=True):
            assert taps is not None
            taps[layer] = _as_array(DeviceRows(rows, places))
        return _as_array(DeviceRows(states, places))

    def step(self, tokens: IntArray, memory: Memory | None, cache: KVCache, prefix: Prefix | None = None) -> FloatArray:
        """As of any model; the states are :class:`DeviceRows`, which stand for an array."""
        stack, layers = self.decoder, self._decoder
        assert stack is not None
        assert layers is not None
        if prefix is not None:
            return self.decode(tokens[:, None], memory, cache, prefix=prefix)[:, 0]
        starts = cache[0].lengths.astype(np.int64, copy=False)
        rotation = stack.positions.rotation_of_rows(starts, starts + 1)
        ones = np.ones(len(tokens), np.int64)
        states, _ = layers.run(ones, tokens=tokens, cache=cache, memory=_on_device(memory), rotation=rotation)
        return _as_array(DeviceRows(states, np.arange(len(tokens))))

    def steps(self, memory: Memory | None, cache: KVCache, prefix: Prefix | None = None) -> None:
        """None: what the core keeps between steps, a device keeps as a graph."""

    def logits(self, hidden: FloatArray) -> FloatArray:
        """As of any model."""
        return super().logits(self._readable(hidden))

    def best(self, hidden: FloatArray) -> IntArray:
        """As of any model."""
        return super().best(self._readable(hidden))

    def most_probable(self, hidden: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """As of any model."""
        return super().most_probable(self._readable(hidden), count)

    def log_probabilities(self, hidden: FloatArray) -> FloatArray:
        """As of any model."""
        return super().log_probabilities(self._readable(hidden))

    def new_cache(self, batch: int, capacity: int = 1024, *, page_size: int | None = None) -> KVCache:
        """As of any model; its pages are on the device."""
        assert self.decoder is not None
        sizes = self.decoder.sizes
        return DeviceCache(
            self._device,
            sizes.layers,
            batch,
            sizes.kv_heads,
            capacity,
            sizes.head_dim,
            dtype=self._dtype,
            page_size=page_size,
        )

    def new_memory_rows(self) -> DeviceMemoryRows:
        """As of any model; they stay on the device."""
        return DeviceMemoryRows(self._device)

    def _readable(self, hidden: FloatArray) -> FloatArray:
        """For a head that is not the device's, such as one of few tokens, what is on the device comes back."""
        return hidden if isinstance(self.head, DeviceHead) else np.asarray(hidden)


def _on_device(memory: Memory | None) -> DeviceMemory | None:
    """What this model's encoder has given is there."""
    assert memory is None or isinstance(memory, DeviceMemory)
    return memory


def _as_array(rows: DeviceRows) -> FloatArray:
    """Rows that can do what is asked of arrays of hidden states."""
    return cast(FloatArray, rows)
