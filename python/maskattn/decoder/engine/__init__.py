"""Continuous batching: requests that come at any time are written together, and none shows in another's tokens."""

from maskattn.decoder.engine.engine import Engine
from maskattn.decoder.engine.request import Request

__all__ = ["Engine", "Request"]
