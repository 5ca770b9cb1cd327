"""Masks: immutable expressions over positions, combined with ``&``, ``|`` and ``~``. True means attend."""

from maskattn.masks.base import All, Any, Mask, Not
from maskattn.masks.causal import Causal
from maskattn.masks.dense import Dense
from maskattn.masks.documents import Documents
from maskattn.masks.full import Full
from maskattn.masks.key_padding import KeyPadding
from maskattn.masks.padding import Padding
from maskattn.masks.prefix_lm import PrefixLM
from maskattn.masks.sliding_window import SlidingWindow

__all__ = [
    "All",
    "Any",
    "Causal",
    "Dense",
    "Documents",
    "Full",
    "KeyPadding",
    "Mask",
    "Not",
    "Padding",
    "PrefixLM",
    "SlidingWindow",
]
