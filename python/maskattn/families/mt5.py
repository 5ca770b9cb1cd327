"""mT5 (arXiv:2010.11934): T5 v1.1 under another name."""

from dataclasses import replace

from maskattn.families.t5 import T5

MT5 = replace(T5, name="mt5", head_scale=1.0, defaults={**T5.defaults, "feed_forward_proj": "gated-gelu"})
