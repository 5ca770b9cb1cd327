"""The declaration type of a model family: everything the decoder asks about an architecture, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskattn import masks

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture, declared. The forward pass reads these fields and never asks for the family's name.

    Names are looked up in tables beside the code that uses them (``norms.NORMS``, ``positions.POSITIONS``, ...), so a
    new value is one new entry there.
    """

    #: The ``model_type`` of config.json.
    name: str
    #: Kind of normalisation, where it stands around a residual branch, and the number that keeps its root from zero.
    norm: str
    norm_placement: str
    norm_eps: float
    #: How positions enter the embeddings.
    positions: str
    #: The config key that holds the name of the feed-forward activation.
    activation: str
    #: Factor on token embeddings before positions are added.
    embedding_scale: Callable[[Config], float]
    #: Who sees whom in the self-attention of each layer; keys that do not exist are hidden besides.
    encoder_mask: Callable[[Config, int], masks.Mask]
    decoder_mask: Callable[[Config, int], masks.Mask]
    #: Field of ``Sizes`` -> config keys; the first that is set counts.
    sizes: Mapping[str, tuple[str, ...]]
    #: Values of config keys that a file may leave out.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: Our name -> names in the file; the first that is there counts.
    tensors: Mapping[str, tuple[str, ...]]
    #: Our name of a map with ``.weight`` and ``.bias`` -> its name in the file, with {side} and {layer}.
    modules: Mapping[str, str]
    #: A tensor the file may lack -> (the tensor used instead, the config key that allows it).
    tied: Mapping[str, tuple[str, str]] = field(default_factory=dict)
