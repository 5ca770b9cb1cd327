"""Models on a CUDA device; imported when one is asked for."""

from maskattn.decoder.device.transformer import DeviceTransformer

__all__ = ["DeviceTransformer"]
