"""Forward and backward of a training step as one CUDA graph: no kernel waits for Python to launch it.

A graph reads and writes fixed memory, so each shape of batch has its own: the first steps of a shape run as usual
(they initialise what cuDNN and cuBLAS keep), the next one is captured, checked once against the plain computation,
and replayed from then on. The optimiser's fused kernels follow the graph; they take the learning rate and the
momentum as numbers, which change with every step. Where a capture fails or its check does, everything goes on
without graphs, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from pyserve.training.mixing import Targets

_PLAIN_STEPS = 3  # of each shape, before its graph
_TOLERANCE = 1e-2  # relative, of loss and gradient norm: other algorithms may be chosen, nothing else may differ

Result = tuple[torch.Tensor, torch.Tensor]  # sum of the loss; top labels that are right
Compute = Callable[[nn.Module, torch.Tensor, Targets, int], Result]
Capture = Callable[[Callable[[], Result]], tuple[Callable[[], None], Result]]


class CudaCapture:
    """Captures on the current GPU; all graphs share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Capture, on a stream of its own.

        Raises:
            RuntimeError: something in it cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        return graph.replay, result


@dataclass
class _Graph:
    """A captured computation: fill the inputs, replay, read results and gradients."""

    x: torch.Tensor
    targets: Targets
    replay: Callable[[], None]
    result: Result
    gradients: list[torch.Tensor | None]

    def fill(self, x: torch.Tensor, targets: Targets) -> None:
        self.x.copy_(x)
        for own, value in zip(self.targets.tensors, targets.tensors, strict=True):
            own.copy_(value)


@dataclass
class GraphedBackward:
    """`TrainStep.forward_backward` with graphs, for one model on one GPU and steps of one batch each.

    Args:
        compute: what is captured.
        warn: told, with a code and a sentence, where graphs are given up.
        capture: makes a graph of a computation; it computes nothing yet, but leaves gradients in place.
    """

    compute: Compute
    warn: Callable[[str, str], None]
    capture: Capture = field(default_factory=CudaCapture)
    _seen: dict[tuple[object, ...], int] = field(default_factory=dict)
    _graphs: dict[tuple[object, ...], _Graph] = field(default_factory=dict)
    _given_up: bool = False

    def run(
        self, model: nn.Module, x: torch.Tensor, targets: Targets, divisor: int, reseed: Callable[[], None]
    ) -> Result:
        """What `compute` does and returns; gradients must be None before, as `zero_grad` leaves them.

        Args:
            model, x, targets, divisor: as for `TrainStep.forward_backward`.
            reseed: seeds the generators as they were seeded for this batch.
        """
        key = (x.shape, x.dtype, len(targets.tensors), divisor)
        if not self._given_up and key not in self._graphs and self._seen.get(key, 0) >= _PLAIN_STEPS:
            self._make(key, model, x, targets, divisor, reseed)
        graph = None if self._given_up else self._graphs.get(key)
        if graph is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            return self.compute(model, x, targets, divisor)
        return self._replayed(graph, model, x, targets)

    def _replayed(self, graph: _Graph, model: nn.Module, x: torch.Tensor, targets: Targets) -> Result:
        graph.fill(x, targets)
        graph.replay()
        for parameter, gradient in zip(model.parameters(), graph.gradients, strict=True):
            parameter.grad = gradient
        loss, correct = graph.result
        return loss.clone(), correct.clone()  # the next replay writes over them

    def _make(
        self,
        key: tuple[object, ...],
        model: nn.Module,
        x: torch.Tensor,
        targets: Targets,
        divisor: int,
        reseed: Callable[[], None],
    ) -> None:
        """Capture a graph and check it on this batch; model, gradients and generators are left as they were."""
        buffers = [buffer.clone() for buffer in model.buffers()]

        def rewind() -> None:
            with torch.no_grad():
                for buffer, kept in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(kept)
            for parameter in model.parameters():
                parameter.grad = None
            reseed()

        try:
            plain = self._measured(model, self.compute(model, x, targets, divisor))
            rewind()
            own = targets.clone()
            held = x.clone(memory_format=torch.preserve_format)
            replay, result = self.capture(lambda: self.compute(model, held, own, divisor))
            graph = _Graph(held, own, replay, result, [parameter.grad for parameter in model.parameters()])
            rewind()
            graphed = self._measured(model, self._replayed(graph, model, x, targets))
            difference = float(((graphed - plain).abs() / plain.abs().clamp(min=1e-6)).max())
            if not difference <= _TOLERANCE:
                raise RuntimeError(f"loss or gradient differ by {difference:.2g} from the plain step")
            self._graphs[key] = graph
        except RuntimeError as error:
            self._given_up = True
            self._graphs.clear()
            self.warn("cuda_graph", f"going on without CUDA graphs: {str(error).splitlines()[0]}")
        rewind()

    @staticmethod
    def _measured(model: nn.Module, result: Result) -> torch.Tensor:
        """Loss and norm of the gradient."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
        return torch.stack([result[0].float(), norm])
