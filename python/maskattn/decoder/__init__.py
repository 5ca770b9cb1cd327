"""Text generation with an encoder-decoder: ``load`` a checkpoint, then ask the ``Model``."""

from maskattn.decoder.api import Model, load

__all__ = ["Model", "load"]
