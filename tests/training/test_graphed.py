"""Steps replayed from graphs are the plain steps: with a stand-in for the capture, and with CUDA where it is.

The stand-in behaves as a graph does: it computes nothing when it is made, and each replay reads the memory that it
was made with, and writes results and gradients where they were then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from pyserve.training.graphed import GraphedBackward, Result
from pyserve.training.mixing import Mixing
from pyserve.training.optim import set_rates
from pyserve.training.step import Batch, TrainStep
from tests.training.support import RandomBatches, same, tiny_config, tiny_network


class FakeCapture:
    """A graph in Python, of a model."""

    def __init__(self, model: nn.Module, spoil: float = 1.0) -> None:
        self.model, self.spoil = model, spoil
        self.captures = self.replays = 0

    def __call__(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        self.captures += 1
        buffers = [b.clone() for b in self.model.buffers()]
        state = torch.get_rng_state()
        result = compute()
        torch.set_rng_state(state)
        for buffer, kept in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        held = [p.grad for p in self.model.parameters()]
        for tensor in (*result, *[g for g in held if g is not None]):
            tensor.fill_(-7)  # nothing was computed yet

        def replay() -> None:
            self.replays += 1
            for parameter in self.model.parameters():
                parameter.grad = None
            for own, new in zip(result, compute(), strict=True):
                own.copy_(new)
            for own, parameter in zip(held, self.model.parameters(), strict=True):
                if own is not None:
                    own.copy_(parameter.grad * self.spoil)
                parameter.grad = torch.full_like(parameter, 9.0)  # replays do not know of `grad`

        return replay, result


def batches(epochs: int) -> Iterator[Batch]:
    data = RandomBatches(36)  # four batches of 8 and one of 4
    for epoch in range(epochs):
        yield from data.epoch(epoch)


def trained(step: TrainStep, *, frozen: bool, graphed: bool, spoil: float = 1.0, epochs: int = 6):  # type: ignore[no-untyped-def]
    network = tiny_network()
    network.freeze_body(frozen)
    network.train_mode(freeze_batch_norm=False)
    optimizer = tiny_config().make_optimizer(network)
    capture = FakeCapture(network.model, spoil)
    warnings: list[tuple[str, str]] = []
    engine = GraphedBackward(
        step.forward_backward, lambda code, text: warnings.append((code, text)), capture=capture
    )
    results = []
    for number, batch in enumerate(batches(epochs)):
        set_rates(optimizer, 0.02 * (1 + number % 3), 0.9 - 0.01 * (number % 5))
        done = step.run(network.model, optimizer, [batch], number, engine if graphed else None)
        results.append((done.loss, done.correct))
    return network.weights(), [(float(loss), int(correct)) for loss, correct in results], capture, warnings


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mixing", [Mixing(), Mixing(mixup=0.4), Mixing(0.4, 1.0)])
def test_replayed_steps_are_the_plain_ones(frozen: bool, mixing: Mixing) -> None:
    step = TrainStep(mixing=mixing, label_smoothing=0.1, gradient_clip_norm=1.0, seed=3)
    weights, losses, _, _ = trained(step, frozen=frozen, graphed=False)
    ours, our_losses, capture, warnings = trained(step, frozen=frozen, graphed=True)
    assert our_losses == losses
    assert same(ours, weights)
    assert warnings == []
    assert capture.captures == 2  # one graph for each shape of batch
    assert capture.replays == 24 - 3 + 6 - 3 + 2  # but for the first three steps of each; and the two checks


def test_a_graph_that_computes_something_else_is_given_up() -> None:
    step = TrainStep(seed=3)
    weights, losses, _, _ = trained(step, frozen=False, graphed=False)
    ours, our_losses, capture, warnings = trained(step, frozen=False, graphed=True, spoil=1.1)
    assert (our_losses, capture.captures) == (losses, 1)
    assert same(ours, weights)
    [(code, text)] = warnings
    assert code == "cuda_graph"
    assert "going on without CUDA graphs: loss or gradient differ by 0.1" in text


def test_a_capture_that_fails_is_given_up() -> None:
    network = tiny_network()
    step = TrainStep(seed=3)
    warnings: list[tuple[str, str]] = []

    def refuse(compute: object) -> tuple[Callable[[], None], Result]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    engine = GraphedBackward(step.forward_backward, lambda *said: warnings.append(said), capture=refuse)
    optimizer = tiny_config().make_optimizer(network)
    set_rates(optimizer, 0.02, None)
    for number, batch in enumerate(batches(2)):
        step.run(network.model, optimizer, [batch], number, engine)
    assert warnings == [
        ("cuda_graph", "going on without CUDA graphs: operation not permitted when stream is capturing")
    ]


def test_accumulated_steps_use_no_graph() -> None:
    step = TrainStep(gradient_accumulation=2)
    _, _, capture, _ = trained(step, frozen=False, graphed=True)
    assert capture.captures == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_graphs_give_the_plain_losses(precision: str) -> None:
    losses = []
    for graphed in (False, True):
        network = tiny_network()
        network.model.to("cuda")
        network.train_mode(freeze_batch_norm=False)
        step = TrainStep(precision=precision, mixing=Mixing(mixup=0.4), seed=3)
        optimizer = tiny_config().make_optimizer(network)
        said: list[object] = []
        engine = (
            GraphedBackward(step.forward_backward, lambda *told, said=said: said.append(told)) if graphed else None
        )
        found = []
        for number, (x, y) in enumerate(batches(6)):
            set_rates(optimizer, 0.02, None)
            found.append(step.run(network.model, optimizer, [(x.cuda(), y.cuda())], number, engine).loss)
        assert said == []
        if engine is not None:
            assert engine._graphs
        losses.append(torch.stack(found).cpu())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)
