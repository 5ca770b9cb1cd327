"""The declaration type of a model family: everything the decoder asks about an architecture, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

from maskattn import masks

Config = Mapping[str, Any]
T = TypeVar("T")
#: A tokenizer that is its tokenizer.json, if there is one.
FILE = "TokenizersBackend"
#: A value, or how it follows from config.json.
Setting = Union[T, Callable[[Config], T]]  # noqa: UP007 - an alias that takes a parameter
#: Config keys, the first that is set counts; or how the number follows from config.json.
Size = Union[tuple[str, ...], Callable[[Config], int]]  # noqa: UP007


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack of layers, an encoder or a decoder: embeddings, layers, and what comes behind them.

    Names are looked up in tables beside the code that uses them (``norms.NORMS``, ``positions.POSITIONS``, ...), so a
    new value is one new entry there.
    """

    #: width, layers, heads, ffn; vocab (mels for audio); positions where there is a limit; and where they are not
    #: heads, width / heads and width: kv_heads, head_dim, embedding_width.
    sizes: Mapping[str, Size]
    #: Who sees whom in the self-attention of each layer; keys that do not exist are hidden besides.
    mask: Callable[[Config, int], masks.Mask]
    #: Our name of a map -> its name in the file without .weight and .bias, with {base}, {side} and {layer}.
    modules: Mapping[str, str]
    #: Our name of a table -> its names in the file; the first that is there counts. "embed" is the tokens'.
    tensors: Mapping[str, tuple[str, ...]]
    #: Which modules have a bias, by the beginning of our names. A norm of kind "layer" always has one.
    biases: Setting[tuple[str, ...]] = ("",)
    #: Modules that hold several maps -> how their rows are laid out.
    fused: Mapping[str, str] = field(default_factory=dict)
    #: Whether the maps of the layers are stored as (in, out).
    transposed: bool = False
    #: What goes in: token ids, or log-mel features of sound.
    inputs: str = "tokens"
    #: Factor on token embeddings before positions are added.
    embedding_scale: Setting[float] = 1.0
    #: How positions enter, and where in its table position 0 stands.
    positions: Setting[str] = "none"
    position_offset: Setting[int] = 0
    #: For rotary positions, values that the config's rope parameters may lack.
    rope: Setting[Mapping[str, Any]] = field(default_factory=dict)
    #: Kind of normalisation, the number that keeps its root from zero, and where it stands around a residual branch.
    norm: Setting[str] = "layer"
    norm_eps: Setting[float] = 1e-5
    placement: Setting[str] = "pre"
    #: Whether one more norm ends the stack.
    final_norm: Setting[bool] = True
    #: Factor on the scores, by layer; None: head_dim ** -0.5. And the cap on them; 0: none.
    attention_scale: Callable[[Config, int], float | None] = lambda config, layer: None
    attention_softcap: Setting[float] = 0.0
    #: Of the feed-forward part: down(activation(up(x))); gated: down(activation(gate(x)) * gated(x)).
    activation: Setting[str]
    gated: Setting[bool] = False


@dataclass(frozen=True, kw_only=True)
class Head:
    """What classifies an encoder's output: maps, each followed by an activation, for the first token or for each."""

    #: (Name in the file, activation); the last map has a row per label, the others keep the width.
    maps: tuple[tuple[str, str], ...]
    per_token: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture, declared. The forward pass reads these fields and never asks for the family's name."""

    #: The ``model_type`` of config.json.
    name: str
    encoder: Stack | None = None
    decoder: Stack | None = None
    #: What {base} stands for, unless no name of the file begins with it: the bare model was saved without its head.
    base: str = ""
    #: Values of config keys that a file may leave out.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: From hidden states to scores of the next token: names in the file, of the weight and of the bias if there is one.
    head: tuple[str, ...] = ("lm_head.weight",)
    head_bias: tuple[str, ...] = ()
    #: Whether the decoder's embeddings take the place of a head that the file lacks.
    tied: Setting[bool] = lambda config: config["tie_word_embeddings"]
    #: Factor on hidden states before the head, and the cap on scores; 0: none.
    head_scale: Setting[float] = 1.0
    logits_softcap: Setting[float] = 0.0
    #: End of the class that config.json names in ``architectures`` -> the head that such a checkpoint has.
    classifiers: Mapping[str, Head] = field(default_factory=dict)
    #: What makes one vector of a sequence, if the file has it.
    pooler: Head | None = None
    #: Config keys that would make it another architecture -> the values under which they do not.
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    #: The tokenizer class where tokenizer_config.json names none; "" is tokenizer.json as it stands, and FILE is that
    #: whatever tokenizer_config.json names.
    tokenizer: str = ""
    #: Tensors that a file may hold and that are not needed, as patterns of ``fnmatch``.
    unused: tuple[str, ...] = ()
