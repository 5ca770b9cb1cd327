"""Models on a CUDA device; imported when one is asked for."""

from maskattn.decoder.device.opening import open_device
from maskattn.decoder.device.transformer import DeviceTransformer

__all__ = ["DeviceTransformer", "open_device"]
