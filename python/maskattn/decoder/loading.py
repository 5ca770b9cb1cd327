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

#: Of matrices on a CUDA device.
DEVICE_DTYPES = ("float32", "bfloat16", "float16")


def load(path: str | os.PathLike[str] | None = None, *, dtype: str | None = None, device: str | None = None) -> Model:
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
        device: None, the CPU; or "cuda", the current CUDA device, or "cuda:1": layers and head run there (a build with
            ``MASKATTN_CUDA``; cuBLASLt, extra ``cuda``). ``dtype`` is then "float32", whose products are never rounded
            to TF32, "bfloat16" or "float16", and queries, keys, values and the cache have it too; searches, and what
            options do to scores, stay on the host.

    Raises:
        FileNotFoundError: the directory or a file is missing, or the Hub has no such model.
        ImportError: a model on the Hub, a GGUF file or a device is asked for, and what it needs is not installed.
        RuntimeError: there is no CUDA device, or no cuBLASLt.
        ValueError: a file is broken, the family is unknown, or a tensor is missing, of another shape, or not finite;
            or the file has tensors that config.json knows nothing of; or ``dtype`` is none of those.
        NotImplementedError: config.json asks for a variant of the architecture, or of quantisation, that is not
            implemented.
    """
    if device is not None:
        return _load_to(device, path, dtype)
    check_dtype(dtype)
    checkpoint = open_checkpoint(path)
    return Model(checkpoint, checkpoint.choose(dtype))


def _load_to(device: str, path: str | os.PathLike[str] | None, dtype: str | None) -> Model:
    if dtype is not None and dtype not in DEVICE_DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DEVICE_DTYPES)} with device="cuda", got {dtype!r}')
    from maskattn.decoder.device import DeviceTransformer, open_device

    open_device(device)  # before the files are read
    checkpoint = open_checkpoint(path)
    chosen = dtype or ("bfloat16" if checkpoint.dtype == "bfloat16" else "float32")
    # On the host float16 matrices are kept with all their digits.
    on_host = checkpoint.choose("bfloat16" if chosen == "bfloat16" else "float32")
    return Model(checkpoint, on_host, lambda forward: DeviceTransformer(forward, chosen, device))


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
