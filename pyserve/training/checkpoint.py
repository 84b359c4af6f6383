"""Checkpoints: one safetensors file with everything a training needs to go on, written atomically.

The file's header carries the scalars as JSON and a CRC-32 of both, so that any damage is found. The one before is
kept beside it and used where the newest is damaged. Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyserve.errors import DataLossError

NEWEST = "checkpoint.safetensors"
PREVIOUS = "checkpoint-previous.safetensors"
_FORMAT = "pyserve-checkpoint-1"


@dataclass
class Checkpoint:
    """Tensors by name, on the CPU after loading, and everything else as JSON values."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any] = field(default_factory=dict)


def select(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, which is taken off."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write one file: complete under its own name, or not there at all.

    Raises:
        OSError: the disk is full or the folder cannot be written; the file that was there is untouched.
    """
    from safetensors.torch import save_file

    tensors = {k: _plain(v) for k, v in sorted(checkpoint.tensors.items())}
    text = json.dumps(checkpoint.state, sort_keys=True)
    metadata = {"format": _FORMAT, "state": text, "crc32": str(_crc32(tensors, text))}
    temporary = path.with_name(f"{path.name}.tmp")  # one writer a folder: what a killed one left is overwritten
    try:
        save_file(tensors, temporary, metadata=metadata)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Checkpoint:
    """Read one file that `save` wrote.

    Raises:
        DataLossError: damaged, cut off, or not a checkpoint.
        FileNotFoundError: not there.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # copies: what `get_tensor` gives is mapped from the file, and may be aligned to 8 bytes alone
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataLossError(f"checkpoint {path.name} is damaged: {error}") from error
    text = metadata.get("state", "")
    if metadata.get("format") != _FORMAT:
        raise DataLossError(f"checkpoint {path.name} has format {metadata.get('format')!r}, expected {_FORMAT!r}")
    if metadata.get("crc32") != str(_crc32(tensors, text)):
        raise DataLossError(f"checkpoint {path.name} is damaged: its checksum does not match its contents")
    return Checkpoint(tensors, json.loads(text))


class CheckpointStore:
    """The newest checkpoint of one training and the one before, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the newest; what was the newest becomes the one before. At every moment one of them is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        incoming = self.folder / "checkpoint-incoming.safetensors"
        save(incoming, checkpoint)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / NEWEST).replace(self.folder / PREVIOUS)
        incoming.replace(self.folder / NEWEST)
        _sync(self.folder)

    def load(self) -> tuple[Checkpoint | None, str | None]:
        """The newest whole checkpoint, None where none was written; and what was wrong with a damaged one.

        Raises:
            DataLossError: there are checkpoints, and all are damaged.
        """
        problems: list[str] = []
        for name in (NEWEST, PREVIOUS):
            try:
                return load(self.folder / name), "; ".join(problems) or None
            except FileNotFoundError:
                continue
            except DataLossError as error:
                problems.append(error.message)
        if problems:
            raise DataLossError(f"no whole checkpoint in {self.folder.name}: {'; '.join(problems)}")
        return None, None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, contiguous, sharing memory with no other tensor of the file."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _crc32(tensors: Mapping[str, torch.Tensor], text: str) -> int:
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), crc)
        if value.numel():
            crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _sync(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
