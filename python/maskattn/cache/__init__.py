"""The keys and values of the tokens so far: contiguous, paged or a ring, in floats or int8 (docs/cache.md)."""

from maskattn.cache.draft import Draft
from maskattn.cache.kv_cache import KVCache
from maskattn.cache.layer import Layer

__all__ = ["Draft", "KVCache", "Layer"]
