"""What a family's declaration says for one config.json: names and numbers, each checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskattn import masks
from maskattn.families import Family, Stack

#: Guards against files that lie: no size is larger, and no table is computed for more positions.
_MOST = 1 << 30
MOST_POSITIONS = 1 << 21


@dataclass(frozen=True)
class Sizes:
    """The numbers of config.json that fix every shape of a stack; 0: there is no such thing."""

    width: int
    layers: int
    heads: int
    ffn: int
    kv_heads: int
    head_dim: int
    embedding_width: int
    vocab: int = 0
    mels: int = 0
    positions: int = 0


class Settings:
    """A stack's declaration, resolved.

    Attributes:
        side: "encoder" or "decoder".
        sizes: all that fixes a shape.
        the others: as in :class:`~maskattn.families.Stack`, as values.

    Raises:
        ValueError: a key of config.json is missing, or not what it must be.
    """

    def __init__(self, family: str, side: str, stack: Stack, config: Mapping[str, Any]) -> None:
        self.family, self.side, self.stack, self.config = family, side, stack, config
        self.sizes = self._read_sizes()
        self.norm: str = self._one(stack.norm, "norm", str)
        self.norm_eps: float = self._one(stack.norm_eps, "norm_eps", float)
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps must be between 0 and 1, got {self.norm_eps}; correct config.json")
        self.placement: str = self._one(stack.placement, "placement", str)
        self.positions: str = self._one(stack.positions, "positions", str)
        self.position_offset: int = self._one(stack.position_offset, "position_offset", int)
        if not 0 <= self.position_offset < _MOST:
            raise ValueError(
                f"positions must begin at a row from 0 up, got {self.position_offset}; correct config.json"
            )
        self.rope: Mapping[str, Any] = self._one(stack.rope, "rope", Mapping)
        self.biases: tuple[str, ...] = self._one(stack.biases, "biases", tuple)
        self.final_norm: bool = self._one(stack.final_norm, "final_norm", bool)
        self.gated: bool = self._one(stack.gated, "gated", bool)
        self.activation: str = self._one(stack.activation, "activation", str)
        self.embedding_scale = self._factor(stack.embedding_scale, "embedding_scale")
        self.attention_softcap = self._factor(stack.attention_softcap, "attention_softcap")

    def mask(self, layer: int) -> masks.Mask:
        """Who sees whom in the self-attention of a layer."""
        mask: masks.Mask = self._one(lambda config: self.stack.mask(config, layer), "mask", masks.Mask)
        return mask

    def attention_scale(self, layer: int) -> float | None:
        """Factor on the scores of a layer; None: head_dim ** -0.5."""
        scale: float | None = self._one(
            lambda config: self.stack.attention_scale(config, layer), "attention_scale", int | float | None
        )
        return scale

    def integer(self, key: str, most: int = _MOST) -> int:
        """A positive integer of config.json, below ``most``.

        Raises:
            ValueError: it is none.
        """
        return self._positive((key,), self.config.get(key), most)

    def _one(self, setting: Any, name: str, kind: Any) -> Any:
        return resolve(setting, name, kind, self.config, self.family)

    def _factor(self, setting: Any, name: str) -> float:
        return factor(setting, name, self.config, self.family)

    def _read_sizes(self) -> Sizes:
        values = {name: self._size(size) for name, size in self.stack.sizes.items()}
        width, heads = values["width"], values["heads"]
        if "head_dim" not in values and width % heads:
            raise ValueError(f"{self.side}_heads must divide the model width {width}, got {heads}; check config.json")
        made = Sizes(**{"kv_heads": heads, "head_dim": width // heads, "embedding_width": width, **values})
        if made.heads % made.kv_heads:
            raise ValueError(
                f"{self.side}_heads must be a multiple of the key-value heads {made.kv_heads}, got {heads}; "
                "check config.json"
            )
        return made

    def _size(self, size: tuple[str, ...] | Callable[[Mapping[str, Any]], int]) -> int:
        if callable(size):
            return self._positive(("its sizes",), self._one(size, "size", object))
        return self._positive(size, next((self.config[key] for key in size if self.config.get(key) is not None), None))

    def _positive(self, keys: tuple[str, ...], value: object, most: int = _MOST) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < most:
            raise ValueError(
                f"config.json must have {' or '.join(keys)} as a positive integer, got {value!r:.60}; "
                f"take the config.json of a {self.family} model"
            )
        return value


def check_variant(family: Family, config: Mapping[str, Any]) -> None:
    """Raises NotImplementedError where config.json asks for a variant that the family does not declare."""
    for key, values in family.only.items():
        if config.get(key) not in (None, *values):
            raise NotImplementedError(
                f"{key} of config.json must be {' or '.join(map(repr, values))}, got {config[key]!r:.60}, which is not "
                f"implemented for {family.name}; take another checkpoint of the model"
            )


def resolve(setting: Any, name: str, kind: Any, config: Mapping[str, Any], family: str) -> Any:
    """The value of a :data:`~maskattn.families.family.Setting`.

    Raises:
        ValueError: config.json lacks a key that it needs, or gives it something else than ``kind``.
    """
    try:
        value = setting(config) if callable(setting) else setting
    except KeyError as error:
        raise ValueError(
            f"config.json must have {error.args[0]}, which {name} needs, got no such key; "
            f"take the config.json of a {family} model"
        ) from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as error:
        raise ValueError(
            f"config.json must say what {name} is, got values that do not fit ({error}); "
            f"take the config.json of a {family} model"
        ) from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool and kind is not object):
        raise ValueError(
            f"config.json must say what {name} is, got {value!r:.60}; take the config.json of a {family} model"
        )
    return value


def factor(setting: Any, name: str, config: Mapping[str, Any], family: str) -> float:
    """As :func:`resolve`, for a finite number from 0 up."""
    value = resolve(setting, name, int | float, config, family)
    if not 0 <= value < _MOST:
        raise ValueError(f"{name} must be a number from 0 up, got {value!r:.60}; correct config.json")
    return float(value)
