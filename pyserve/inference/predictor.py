"""A loaded model as its callers use it: it decodes pictures, gives probabilities, names the likeliest classes.

A picture's answer does not depend on what else is in its batch beyond rounding: probabilities agree within
`BATCH_TOLERANCE` in float32 whatever the batch (another number of pictures may be added up in another order).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyserve.data.images import decode_square
from pyserve.data.resampling import resize_with_torch
from pyserve.data.transforms import tta_views
from pyserve.errors import InvalidArgumentError
from pyserve.inference.bundle import Bundle
from pyserve.inference.cuda_graphs import CudaGraphs, bucket_sizes
from pyserve.inference.statistics import ModelStatistics

DEFAULT_TOP_K = 5
BATCH_TOLERANCE = 1e-5
DEFAULT_MAX_IMAGE_PIXELS = 64_000_000

_MANY_SIZES = 16

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """One class of one picture."""

    label: str
    index: int  # among the model's labels
    probability: float  # 0…1


class Predictor:
    """A loaded model; all methods may be called from many threads at once.

    Args:
        bundle: the model; see `load_bundle`.
        threads: cores for those who decode many pictures for it; 0 means as many as torch uses.
        max_image_pixels: larger pictures are refused before they are decoded.
        max_batch_size: on a GPU, passes of up to this size are recorded now; 0 means none.

    Attributes:
        statistics: what the batcher has done with it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
        max_batch_size: int = 0,
    ) -> None:
        self._bundle = bundle
        self._max_image_pixels = max_image_pixels
        self._graphs: CudaGraphs | None = None
        if max_batch_size and bundle.device.type == "cuda":
            self._graphs = CudaGraphs(
                self._forward,
                side=bundle.preprocessing.presize,
                classes=len(bundle.labels),
                sizes=bucket_sizes(max_batch_size),
                device=bundle.device,
            )
        self.threads = threads or torch.get_num_threads()
        self.statistics = ModelStatistics()

    @property
    def bundle(self) -> Bundle:
        """The loaded model."""
        return self._bundle

    @property
    def name(self) -> str:
        """`models/{id}/versions/{n}`."""
        return self._bundle.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in output order."""
        return self._bundle.labels

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """An encoded picture (JPEG, PNG, …) as uint8 [3, presize, presize], as training and validation decode it.

        Raises:
            DataError: it is none, or has too many pixels.
        """
        side = self._bundle.preprocessing.presize
        return decode_square(data, side, max_pixels=self._max_image_pixels, resize=resize_with_torch)

    def check_tensor(self, array: npt.NDArray[Any], field: str = "tensor") -> npt.NDArray[Any]:
        """Prepared RGB pictures as `probabilities` takes them; a view where possible.

        Args:
            array: [N, 3, S, S] or [N, S, S, 3] with S the model's image size; uint8 0…255 or float32 0…1, not
                normalised.
            field: what errors call it.

        Returns:
            [N, 3, S, S].

        Raises:
            InvalidArgumentError: names `field`.shape, .dtype or .data.
        """
        size = self._bundle.preprocessing.image_size
        shape = tuple(array.shape)
        if array.dtype not in (np.dtype(np.uint8), np.dtype(np.float32)):
            raise InvalidArgumentError.field(f"{field}.dtype", str(array.dtype), "float32 or uint8")
        if len(shape) == 4 and shape[1:] == (size, size, 3):
            array = array.transpose(0, 3, 1, 2)
        elif len(shape) != 4 or shape[1:] != (3, size, size):
            raise InvalidArgumentError.field(
                f"{field}.shape", list(shape), f"[N, 3, {size}, {size}] or [N, {size}, {size}, 3]"
            )
        if array.dtype == np.float32 and array.size and not (array.min() >= 0 and array.max() <= 1):
            got = f"values from {array.min():g} to {array.max():g}"
            raise InvalidArgumentError.field(f"{field}.data", got, "0 to 1: not yet normalised, and 255 is 1")
        return array

    @torch.inference_mode()
    def probabilities(self, batch: torch.Tensor, *, tta: bool = False) -> Probabilities:
        """Probabilities of a batch, which goes through the network in one piece.

        Args:
            batch: [N, 3, side, side], any N, side ≥ the model's image size, of which the centre counts: uint8 as
                `decode` and training's cache have it, or uint8 or float32 as `check_tensor` gives it.
            tta: the mean over five views of each picture (`data.transforms.tta_views`).

        Returns:
            float32 [N, classes], each row adding up to 1.
        """
        if not len(batch):
            return np.zeros((0, len(self.labels)), np.float32)
        preprocessing = self._bundle.preprocessing
        is_decoded = batch.dtype == torch.uint8 and batch.shape[-1] == preprocessing.presize
        if self._graphs is not None and is_decoded and not tta and len(batch) <= self._graphs.largest:
            return self._graphs.run(batch.numpy())
        batch = batch.to(self._bundle.device)
        if not tta:
            answer: Probabilities = self._forward(batch).cpu().numpy()
            return answer
        views = tta_views(batch, preprocessing.image_size)
        mean = torch.stack([self._softmax(self._bundle.normalize(view)) for view in views]).mean(dim=0)
        return mean.cpu().numpy()

    def warm_up(self, largest: int) -> None:
        """Predict batches of every size up to the largest once: kernels are chosen and weights packed by size.

        Where there are many sizes, only those that double.
        """
        side = self._bundle.preprocessing.presize
        for size in range(1, largest + 1) if largest <= _MANY_SIZES else bucket_sizes(largest):
            self.probabilities(torch.zeros(size, 3, side, side, dtype=torch.uint8))

    @torch.inference_mode()
    def log_probabilities(self, batch: torch.Tensor) -> Probabilities:
        """Logarithms of what `probabilities` gives without TTA, exact where a probability rounds to zero.

        Args:
            batch: as for `probabilities`.

        Returns:
            float32 [N, classes].
        """
        logits = self._bundle.model(self._bundle.prepare(batch)).float()
        logs: Probabilities = (logits / self._bundle.description.temperature).log_softmax(dim=1).cpu().numpy()
        return logs

    def top(self, probabilities: Probabilities, top_k: int = DEFAULT_TOP_K) -> list[list[Score]]:
        """The likeliest classes of each row, most likely first; of equally likely ones the lower index first.

        Args:
            probabilities: [N, classes].
            top_k: classes per row, ≥ 1; more than there are means all.

        Raises:
            InvalidArgumentError: names `top_k`.
        """
        if top_k < 1:
            raise InvalidArgumentError.field("top_k", top_k, "≥ 1")
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [Score(self.labels[i], int(i), float(row[i])) for i in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Of pictures on the device."""
        return self._softmax(self._bundle.prepare(batch))

    def _softmax(self, prepared: torch.Tensor) -> torch.Tensor:
        return self._bundle.probabilities(self._bundle.model(prepared))
