"""A network on a GPU, recorded once for each of a few batch sizes and replayed: one launch in place of hundreds.

Pictures travel as uint8 through page-locked memory, a quarter of what float32 would be, and are cropped,
normalised and classified on the device. A batch of a size between two of those that are recorded runs as the
larger one, its last rows holding whatever the batch before left there.

Written for CUDA 12 and later, compiled with the rest; it has not yet run on hardware.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from pyserve.errors import InvalidArgumentError

_WARM_UP_PASSES = 3  # the first passes allocate workspaces, which must not happen while recording

# uint8 [n, 3, side, side] on the device to probabilities, float32 [n, classes] on the device
Forward = Callable[[torch.Tensor], torch.Tensor]


def bucket(sizes: tuple[int, ...], count: int) -> int:
    """The smallest of the recorded sizes (ascending) that holds a batch.

    Raises:
        InvalidArgumentError: none does.
    """
    for size in sizes:
        if size >= count:
            return size
    raise InvalidArgumentError.field("batch", f"{count} pictures", f"at most {sizes[-1]}")


def bucket_sizes(largest: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and that one: at most half of a pass is for nothing."""
    sizes = [1 << power for power in range(largest.bit_length()) if 1 << power < largest]
    return (*sizes, largest)


class CudaGraphs:
    """The recorded passes of one model; calls take turns.

    Args:
        forward: the pass, of capturable operations only.
        side: of the pictures, pixels.
        classes: of the answers.
        sizes: batch sizes to record, ascending.
        device: the GPU.

    Attributes:
        largest: of the sizes.
    """

    def __init__(
        self, forward: Forward, *, side: int, classes: int, sizes: tuple[int, ...], device: torch.device
    ) -> None:
        self.largest = largest = sizes[-1]
        self._sizes = sizes
        self._lock = threading.Lock()
        # above what else runs on this GPU in this process, such as an evaluation
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._host_inputs = torch.empty((largest, 3, side, side), dtype=torch.uint8, pin_memory=True)
        self._host_answers = torch.empty((largest, classes), dtype=torch.float32, pin_memory=True)
        self._inputs = torch.zeros((largest, 3, side, side), dtype=torch.uint8, device=device)
        self._answers = torch.zeros((largest, classes), dtype=torch.float32, device=device)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._graphs = self._record(forward)

    @torch.inference_mode()
    def run(self, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities, float32 [n, classes], of pictures, uint8 [n, 3, side, side], n ≤ `largest`."""
        count = len(rows)
        size = bucket(self._sizes, count)
        with self._lock, torch.cuda.stream(self._stream):
            self._host_inputs.numpy()[:count] = rows
            self._inputs[:count].copy_(self._host_inputs[:count], non_blocking=True)
            self._graphs[size].replay()
            self._host_answers[:count].copy_(self._answers[:count], non_blocking=True)
            self._done.record(self._stream)
            self._done.synchronize()  # outside Python's lock, so that decoding goes on
            answers: npt.NDArray[np.float32] = self._host_answers.numpy()[:count].copy()
            return answers

    @torch.inference_mode()
    def _record(self, forward: Forward) -> dict[int, torch.cuda.CUDAGraph]:
        """One graph for each size, the largest first, so that the others find room in its memory."""
        graphs: dict[int, torch.cuda.CUDAGraph] = {}
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UP_PASSES):
                    forward(self._inputs[:size])
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                self._answers[:size].copy_(forward(self._inputs[:size]))
            graphs[size] = graph
        return graphs
