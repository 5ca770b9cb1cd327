"""Several tokens a pass: something cheap drafts them, the model checks them (arXiv:2211.17192, arXiv:2302.01318)."""

from maskattn.decoder.speculation.loop import speculate
from maskattn.decoder.speculation.page import Page
from maskattn.decoder.speculation.settings import Speculation

__all__ = ["Page", "Speculation", "speculate"]
