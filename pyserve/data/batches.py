"""Batches of a part on the training device: a pure function of (seed, epoch, batch), read ahead by a thread."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch

from pyserve.data.order import alternating_flips, epoch_order, generator
from pyserve.data.tensors import PartTensors
from pyserve.data.transforms import MAX_SHIFT, evaluation_view, normalize, shrunk, tta_views
from pyserve.data.transforms import augment as augmented

Batch = tuple[torch.Tensor, torch.Tensor]

_AHEAD = 2


class TrainBatches:
    """Shuffled, augmented batches.

    Every epoch has all pictures in an order of its own (see `epoch_order`). A last batch of a single picture is
    left out, for batch normalisation cannot learn from it; so `len` is 0 where the part has less than 2 pictures.

    Args:
        part: the pictures.
        batch_size: pictures per batch; the last one of an epoch may have less.
        augment: name of the augmentation (see `transforms.augment`).
        seed: of order and augmentation.
        image_size: side of the network's input, pixels.
        mean, std: of each RGB channel, for values in 0…1.
        device: where batches are augmented and given.
        balanced: as for `epoch_order`.
        max_shift: as for `transforms.augment`.
        alternate_flips: pictures are mirrored as `alternating_flips` says, where the augmentation mirrors any.
        size_of: progressive resizing: side of the batches of an epoch, at most `image_size`; None: that one.
    """

    def __init__(
        self,
        part: PartTensors,
        *,
        batch_size: int,
        augment: str,
        seed: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        balanced: bool = False,
        max_shift: float = MAX_SHIFT,
        alternate_flips: bool = False,
        size_of: Callable[[int], int] | None = None,
    ) -> None:
        self._part, self._batch_size, self._augment, self._seed = part, batch_size, augment, seed
        self._balanced, self._size_of = balanced, size_of
        self._max_shift, self._alternate_flips = max_shift, alternate_flips
        self._image_size, self._mean, self._std, self._device = image_size, tuple(mean), tuple(std), device

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self._part), self._batch_size)
        if len(self._part) < 2:
            return 0
        return whole + (rest > 1)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on: float32 [N, 3, S, S] normalised, channels-last; int64 [N].

        What a batch holds does not depend on where the epoch was entered. Closing the iterator ends its thread.
        """
        size = self._image_size if self._size_of is None else self._size_of(epoch)
        order = epoch_order(self._part.labels, seed=self._seed, epoch=epoch, balanced=self._balanced)
        indices = torch.split(order, self._batch_size)[start_step : len(self)]
        flips = alternating_flips(len(self._part), seed=self._seed, epoch=epoch) if self._alternate_flips else None
        with closing(_read(self._part, indices, self._device)) as batches:
            for step, (index, (images, labels)) in enumerate(zip(indices, batches, strict=True), start=start_step):
                view = augmented(
                    self._augment,
                    shrunk(images, round(images.shape[-1] * size / self._image_size)),
                    size,
                    generator(self._seed, epoch, step + 1),
                    max_shift=self._max_shift,
                    mirrored=None if flips is None else flips[index],
                )
                yield _finished(view, self._mean, self._std), labels


class ValidBatches:
    """All pictures in their order, as they are measured.

    Args:
        part, batch_size, image_size, mean, std, device: as for `TrainBatches`.
    """

    def __init__(
        self,
        part: PartTensors,
        *,
        batch_size: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self._part, self._batch_size = part, batch_size
        self._image_size, self._mean, self._std, self._device = image_size, tuple(mean), tuple(std), device

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self._part) / self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The same batches in every epoch; their form is that of `TrainBatches.epoch`."""
        indices = torch.split(torch.arange(len(self._part)), self._batch_size)[start_step : len(self)]
        with closing(_read(self._part, indices, self._device)) as batches:
            for images, labels in batches:
                yield _finished(evaluation_view(images, self._image_size), self._mean, self._std), labels

    def tta_epoch(self) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        """Batches of test-time augmentation: views of the pictures, each in the form of `epoch`'s, and labels."""
        indices = torch.split(torch.arange(len(self._part)), self._batch_size)
        with closing(_read(self._part, indices, self._device)) as batches:
            for images, labels in batches:
                views = tta_views(images, self._image_size)
                yield [_finished(view, self._mean, self._std) for view in views], labels


def _finished(view: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    return normalize(view, mean, std).contiguous(memory_format=torch.channels_last)


def _read(
    part: PartTensors, indices: Sequence[torch.Tensor], device: torch.device
) -> Generator[Batch, None, None]:
    """The pictures and labels of each index tensor, on the device; a thread takes the next out of the file."""
    pixels, pinned = part.images.numpy(), device.type == "cuda"

    def gather(index: torch.Tensor) -> Batch:
        # numpy's take, since torch's would start a thread pool of its own in this thread, beside the training's
        images = torch.empty((len(index), *part.images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        np.take(pixels, index.numpy(), axis=0, out=images.numpy(), mode="clip")
        labels = part.labels[index]
        return images, labels.pin_memory() if pinned else labels

    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="pyserve-batches") as reader:
        try:
            for index in indices:
                waiting.append(reader.submit(gather, index))
                if len(waiting) > _AHEAD:
                    yield _moved(waiting.popleft().result(), device)
            while waiting:
                yield _moved(waiting.popleft().result(), device)
        finally:
            for future in waiting:
                future.cancel()


def _moved(batch: Batch, device: torch.device) -> Batch:
    images, labels = batch
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
