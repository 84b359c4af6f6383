"""A network's weights after some epochs of its training, kept beside the job: how features come about.

<job folder>/snapshots/epoch-00005.safetensors      each whole or not there at all
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pyserve.errors import DataLossError
from pyserve.models.registry import create_model

# Zeiler & Fergus 2013, arXiv 1311.2901, figure 4
EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)

_FOLDER = "snapshots"
_NAME = re.compile(r"epoch-(\d{5})\.safetensors")
_FACTS = "pyserve"


@dataclass(frozen=True)
class SnapshotFacts:
    """What it takes to build the network again and to show it pictures."""

    architecture: str
    classes: int
    image_size: int
    presize: int


@dataclass(frozen=True)
class Snapshot:
    """The weights after an epoch, counted from 1."""

    epoch: int
    path: Path


def keep_snapshot(job_dir: Path, epoch: int, state: Mapping[str, torch.Tensor], facts: SnapshotFacts) -> None:
    """Write a state dict: plain tensors on the CPU."""
    folder = job_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{epoch:05}.safetensors"
    temporary = path.with_suffix(".part")
    save_file(dict(state), temporary, metadata={_FACTS: json.dumps(asdict(facts))})
    temporary.replace(path)


def snapshots(job_dir: Path) -> list[Snapshot]:
    """Those of a job, first epoch first."""
    folder = job_dir / _FOLDER
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((Snapshot(int(match[1]), path) for match, path in found), key=lambda snapshot: snapshot.epoch)


def load_snapshot(snapshot: Snapshot) -> tuple[nn.Module, SnapshotFacts]:
    """The plain network as it was, in evaluation mode.

    Raises:
        DataLossError: the file is damaged.
    """
    try:
        with safe_open(snapshot.path, framework="pt") as file:
            facts = SnapshotFacts(**json.loads(file.metadata()[_FACTS]))
        state = load_file(snapshot.path)
        with torch.random.fork_rng(devices=[]):  # its random first weights are nobody's business
            model = create_model(facts.architecture, facts.classes)
        model.load_state_dict(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataLossError(f"the snapshot of epoch {snapshot.epoch} is damaged: {error}") from error
    return model.eval(), facts
