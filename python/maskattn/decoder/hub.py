"""Checkpoints by their names on the Hugging Face Hub: from its cache on this machine, else downloaded into it."""

from __future__ import annotations

import re
from pathlib import Path

from maskattn.decoder.checkpoint import COMPANIONS

#: What a checkpoint is made of, for us. Not the weights in other formats, which would be as much again.
_FILES = ("*.safetensors", *COMPANIONS)


def is_model_id(path: str) -> bool:
    """Whether ``path`` looks like ``owner/name`` and is nothing on this machine."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None and not Path(path).exists()


def download(model_id: str) -> Path:
    """The folder of a snapshot.

    Raises:
        ImportError: ``huggingface_hub`` is not installed.
        FileNotFoundError: it is neither in the cache nor to be had.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ImportError(
            f"path must be a folder, or huggingface_hub must be installed to fetch {model_id!r}, got neither; "
            'pip install "maskattn[hub]"'
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(model_id, allow_patterns=list(_FILES), local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(huggingface_hub.snapshot_download(model_id, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"path must be a folder or a model on the Hugging Face Hub, got {model_id!r}, which is neither here nor to "
            f"be had ({type(error).__name__}: {str(error).splitlines()[0]}); check the name and the connection"
        ) from error
