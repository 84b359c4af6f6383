"""What a network's head sees of each picture of a data set: features, with small grey pictures beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pyserve.data.tensors import load_part
from pyserve.errors import CancelledError, FailedPreconditionError
from pyserve.inference.probe import Probe

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest, Part

THUMBNAIL = 32  # pixels
_BATCH_IMAGES = 64


@dataclass(frozen=True)
class Embedding:
    """Index i of all fields speaks of the same picture."""

    features: npt.NDArray[np.float32]  # [N, D]
    thumbnails: npt.NDArray[np.uint8]  # grey, [N, 32, 32]
    targets: npt.NDArray[np.int64]  # [N], indices of `classes`
    paths: tuple[str, ...]  # relative to `root`
    parts: tuple[Part, ...]
    classes: tuple[str, ...]  # of the data set
    root: str

    def __len__(self) -> int:
        return len(self.paths)


def embed(
    probe: Probe,
    manifest: Manifest,
    parts: tuple[Part, ...],
    cache_dir: Path,
    should_stop: Callable[[], bool] | None = None,
) -> Embedding:
    """Features of every picture of some parts. The data set's classes may be others than the network's.

    Args:
        parts: in which order.
        cache_dir: where decoded pictures are kept.
        should_stop: asked between batches; True ends the work.

    Raises:
        FailedPreconditionError: the parts are empty.
        CancelledError: `should_stop` said so.
    """
    items = [item for part in parts for item in manifest.part_items(part)]
    if not items:
        raise FailedPreconditionError(f"{manifest.name} has no pictures in its {' and '.join(parts)} part")

    def ask(*_: int) -> None:
        if should_stop is not None and should_stop():
            raise CancelledError(f"the embedding of {len(items)} pictures was stopped")

    features, thumbnails = [], []
    for part in parts:
        presize, threads = probe.preprocessing.presize, torch.get_num_threads()
        images = load_part(manifest, part, presize, cache_dir, threads=threads, progress=ask).images
        for begin in range(0, len(images), _BATCH_IMAGES):
            ask()
            batch = images[begin : begin + _BATCH_IMAGES]
            features.append(probe.features(probe.prepare(batch)).cpu().numpy())
            thumbnails.append(_thumbnails(batch))
    return Embedding(
        features=np.concatenate(features),
        thumbnails=np.concatenate(thumbnails),
        targets=np.array([item.label for item in items], dtype=np.int64),
        paths=tuple(item.path for item in items),
        parts=tuple(item.part for item in items),
        classes=manifest.classes,
        root=manifest.root,
    )


def _thumbnails(batch: torch.Tensor) -> npt.NDArray[np.uint8]:
    """uint8 [N, 3, S, S] as grey [N, 32, 32]."""
    grey = batch.float().mean(dim=1, keepdim=True)
    small: npt.NDArray[np.uint8] = functional.adaptive_avg_pool2d(grey, THUMBNAIL)[:, 0].round().byte().numpy()
    return small
