"""Write a checkpoint packed, to be mapped by whoever loads it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskattn.decoder.api import Model
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.loading import check_dtype, open_checkpoint
from maskattn.decoder.packed import ALIGNMENT, FILE, METADATA, VERSION, PackedCheckpoint, packed_name


def convert(path: str | os.PathLike[str], target: str | os.PathLike[str], *, dtype: str | None = None) -> None:
    """Write a checkpoint as a folder that ``load`` maps into memory instead of reading it: in milliseconds, and shared.

    The folder serves every instruction set, and has the config and the tokenizer along with the weights. Weights are
    in memory once while they are converted, as after a ``load`` in that dtype.

    Args:
        path: as in ``load``.
        target: the folder to write; it appears when it is complete, or not at all.
        dtype: as in ``load``, which takes no other one for this folder.

    Raises:
        ValueError: ``target`` is there, and not an empty folder; the rest as in ``load``.
    """
    check_dtype(dtype)
    if not isinstance(target, str | os.PathLike):
        raise TypeError(f"target must be a str or a path, got {type(target).__name__}; pass the folder to write")
    folder = Path(target)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(
            f"target must be a new folder, got {str(folder)!r}, which is there; remove it, or name another"
        )
    checkpoint = open_checkpoint(path)
    checkpoint.remember()
    if isinstance(checkpoint, PackedCheckpoint):
        dtype = checkpoint.choose(dtype)
    model = Model(checkpoint, checkpoint.choose(dtype))
    temporary = folder.absolute().with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        _write_configs(checkpoint, temporary)
        _write_weights(checkpoint, model.family.name, dtype, temporary / FILE)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_configs(checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(checkpoint.config, indent=2), encoding="utf-8")
    if checkpoint.generation is not checkpoint.config:
        (folder / "generation_config.json").write_text(json.dumps(checkpoint.generation, indent=2), encoding="utf-8")
    for file in checkpoint.companions():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _write_weights(checkpoint: Checkpoint, family: str, dtype: str | None, path: Path) -> None:
    """Packed weights first, each a multiple of the alignment, then the other tensors without gaps."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    weights: list[dict[str, Any]] = []
    arrays, packed, shapes = checkpoint.asked()
    for (_, *names), weight in packed.items():
        tensors[packed_name(names)] = weight.packed_bytes
        of = [(name, shapes[name]) for name in names]
        weights.append({"tensors": of, "dtype": weight.dtype, "group": weight.group})
    assert all(memory.nbytes % ALIGNMENT == 0 for memory in tensors.values())
    tensors |= arrays
    metadata = json.dumps({"version": VERSION, "family": family, "dtype": dtype, "weights": weights})
    header: dict[str, Any] = {"__metadata__": {METADATA: metadata}}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        kind = "U8" if array.dtype == np.uint8 else "F32"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())
