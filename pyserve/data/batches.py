"""Batches of a part on the training device: a pure function of (seed, epoch, batch), read ahead by a thread."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch

from pyserve.data.tensors import PartTensors
from pyserve.data.transforms import augment as augmented
from pyserve.data.transforms import evaluation_view, normalize

Batch = tuple[torch.Tensor, torch.Tensor]

_AHEAD = 2


class TrainBatches:
    """Shuffled, augmented batches.

    Every epoch has all pictures in an order of its own. A last batch of a single picture is left out, for batch
    normalisation cannot learn from it; so `len` is 0 where the part has less than 2 pictures.

    Args:
        part: the pictures.
        batch_size: pictures per batch; the last one of an epoch may have less.
        augment: name of the augmentation (see `transforms.augment`).
        seed: of order and augmentation.
        image_size: side of the network's input, pixels.
        mean, std: of each RGB channel, for values in 0…1.
        device: where batches are augmented and given.
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
    ) -> None:
        self._part, self._batch_size, self._augment, self._seed = part, batch_size, augment, seed
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
        order = torch.randperm(len(self._part), generator=self._generator(epoch, 0))
        indices = torch.split(order, self._batch_size)[start_step : len(self)]
        with closing(_read(self._part, indices, self._device)) as batches:
            for step, (images, labels) in enumerate(batches, start=start_step):
                view = augmented(self._augment, images, self._image_size, self._generator(epoch, step + 1))
                yield _finished(view, self._mean, self._std), labels

    def _generator(self, epoch: int, draw: int) -> torch.Generator:
        """Draw 0 of an epoch is its order, draw i + 1 the augmentation of batch i."""
        (state,) = np.random.SeedSequence([self._seed, epoch, draw]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state) >> 1)


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
