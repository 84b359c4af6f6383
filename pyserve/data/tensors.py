"""A part of a dataset as tensors: decoded once at the presize with many threads, then mapped from the cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from pyserve.data.cache import array_path, cached
from pyserve.data.images import Pixels, read_square
from pyserve.data.manifest import Item, Manifest
from pyserve.data.parallel import map_in_order
from pyserve.data.resampling import resize_with_torch
from pyserve.errors import DataError, DataLossError

_CHECKED_BEFORE = 2**62  # pixels: the limit was asked for when the dataset was made, of the same file

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PartTensors:
    """A part's pictures; index i of all three speaks of the same one."""

    images: torch.Tensor  # uint8 [N, 3, presize, presize], RGB; mapped from a file, so read when touched
    labels: torch.Tensor  # int64 [N]
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)


def load_part(
    manifest: Manifest,
    part: str,
    presize: int,
    cache_dir: Path,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> PartTensors:
    """The pictures of a part, as squares of `presize` pixels (see `decode_square`), in the manifest's order.

    The first call decodes and keeps them; later ones, of any process, map the same file. Processes that call at
    once wait for the first.

    Args:
        manifest: the dataset.
        part: "train" or "valid".
        presize: side of the squares, pixels.
        cache_dir: where decoded pictures are kept.
        threads: pictures decoded at once; 0 means one per core.
        progress: called with the numbers of pictures done and of all, often, also while waiting for another
            process; may raise to end the work.

    Raises:
        DataLossError: a picture is gone, or no longer the one of which the dataset was made: names it.
        OSError: the cache cannot be written.
    """
    items = manifest.part_items(part)
    tell = progress or _silent
    tell(0, len(items))

    def fill(put: Callable[[int, Pixels], None]) -> None:
        def decode(index: int) -> None:
            put(index, _decode(manifest, items[index], presize))

        with closing(map_in_order(decode, range(len(items)), threads=threads)) as results:
            for done, _ in enumerate(results, start=1):
                tell(done, len(items))

    path = array_path(cache_dir, manifest.digest, part, presize)
    shape = (len(items), 3, presize, presize)
    if items:
        images = torch.from_numpy(cached(path, shape, fill, lambda: tell(0, len(items))))
    else:
        images = torch.empty(shape, dtype=torch.uint8)
    return PartTensors(images, torch.tensor([item.label for item in items], dtype=torch.int64), items)


def _decode(manifest: Manifest, item: Item, presize: int) -> Pixels:
    try:
        read = read_square(
            Path(manifest.root, item.path), presize, max_pixels=_CHECKED_BEFORE, resize=resize_with_torch
        )
    except DataError as error:
        raise DataLossError(f"{manifest.name}: {item.path} {error.message}") from error
    except OSError as error:
        raise DataLossError(f"{manifest.name}: {item.path} cannot be read: {error.strerror}") from error
    if item.sha256 and read.sha256 != item.sha256:
        raise DataLossError(f"{manifest.name}: {item.path} has changed since the dataset was made: make it again")
    return read.pixels


def _silent(done: int, total: int) -> None:
    pass
