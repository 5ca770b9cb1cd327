"""From a path or a name to a model."""

from __future__ import annotations

import os
from pathlib import Path

from maskattn.decoder.api import Model
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.folder import open_folder
from maskattn.decoder.hub import download, is_model_id
from maskattn.decoder.packed import FILE, PackedCheckpoint
from maskattn.linear import DTYPES


def load(path: str | os.PathLike[str] | None = None, *, dtype: str | None = None) -> Model:
    """Load a Hugging Face checkpoint: config.json, model.safetensors (or its shards) and, if there, the tokenizer.

    A folder that ``convert`` wrote is mapped into memory, not read.

    Args:
        path: the directory; or ``owner/name`` on the Hugging Face Hub, from its cache if it is there (extra ``hub``);
            or a GGUF file (extra ``gguf``; its tokenizer is not read, a tokenizer.json beside it is); None is the
            embedded default, which writes dates in ISO 8601.
        dtype: in which matrices are kept and read, whatever float type the file has: "float32", "bfloat16", "int8",
            "int4" or "uint4" (see ``maskattn.linear.pack``). Activations and norms are float32 in any case; queries,
            keys, values and the cache are so for "float32", and bfloat16 for all others. Default: "float32", or what a
            folder was converted to, which takes no other. Matrices that the file has in 4-bit groups (GPTQ, AWQ,
            pack-quantized; GGUF's Q4_0) stay as they are unless "float32" or "bfloat16" is asked for; groups that
            packed weights cannot hold without a loss count as floats.

    Raises:
        FileNotFoundError: the directory or a file is missing, or the Hub has no such model.
        ImportError: a model on the Hub or a GGUF file is asked for, and its extra is not installed.
        ValueError: a file is broken, the family is unknown, or a tensor is missing, of another shape, or not finite;
            or the file has tensors that config.json knows nothing of; or ``dtype`` is none of those.
        NotImplementedError: config.json asks for a variant of the architecture, or of quantisation, that is not
            implemented.
    """
    check_dtype(dtype)
    checkpoint = open_checkpoint(path)
    return Model(checkpoint, checkpoint.choose(dtype))


def open_checkpoint(path: str | os.PathLike[str] | None) -> Checkpoint:
    """The checkpoint that ``load`` would load; its weights are not read. Arguments and errors as there."""
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}; pass the checkpoint's folder")
    if path is None:
        return open_folder(Path(__file__).parents[1] / "data" / "dates")
    if Path(path).suffix == ".gguf":
        from maskattn.decoder.gguf_files import open_gguf

        return open_gguf(Path(path))
    directory = download(path) if isinstance(path, str) and is_model_id(path) else Path(path)
    return PackedCheckpoint(directory) if (directory / FILE).is_file() else open_folder(directory)


def check_dtype(dtype: object) -> None:
    """Raises ValueError unless it is one of packed weights, or None."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
