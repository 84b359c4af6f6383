from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from pyserve.errors import InvalidArgumentError
from pyserve.training.optim import set_rates
from pyserve.training.step import TrainStep, balanced_class_weights
from tests.training.support import RandomBatches, same, tiny_config, tiny_network


def one_step(step: TrainStep, sizes: list[int], *, optimizer: str = "sgd", lr: float = 0.1):  # type: ignore[no-untyped-def]
    """Weights after one step over batches of these sizes, BatchNorm in evaluation mode, no dropout."""
    network = tiny_network()
    network.model.eval()
    maker = dataclasses.replace(tiny_config(), optimizer=optimizer, weight_decay=0.0, step=step)
    opt = maker.make_optimizer(network)
    set_rates(opt, lr, None)
    data = RandomBatches(sum(sizes))
    batches = list(zip(data.images.split(sizes), data.labels.split(sizes), strict=True))
    result = step.run(network.model, opt, batches, 0)
    return network, result, data


def test_accumulated_batches_equal_one_large_batch_also_with_a_short_last_one() -> None:
    parts, result, _ = one_step(TrainStep(gradient_accumulation=3), [8, 8, 3])
    whole, expected, _ = one_step(TrainStep(), [19])
    assert (result.images, int(result.correct)) == (19, int(expected.correct))
    torch.testing.assert_close(result.loss, expected.loss)
    for a, b in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_gradient_norm_is_clipped() -> None:
    start = tiny_network().weights()
    for limit in (0.01, 1e9):
        network, _, _ = one_step(TrainStep(gradient_clip_norm=limit), [16])
        parameters = dict(network.model.named_parameters())
        norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
        if limit < 1:
            assert norm == pytest.approx(limit, rel=1e-3)
        else:
            assert norm > 0.01
    assert not same(start, network.weights())


def test_label_smoothing_follows_its_formula() -> None:
    smoothing = 0.1
    _, result, data = one_step(TrainStep(label_smoothing=smoothing), [12])
    fresh = tiny_network()
    fresh.model.eval()
    logp = functional.log_softmax(fresh.model(data.images).double(), 1)
    true = logp[torch.arange(12), data.labels]
    expected = -((1 - smoothing) * true + smoothing * logp.mean(1)).mean()
    assert float(result.loss) == pytest.approx(expected.item(), rel=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    network, result, _ = one_step(TrainStep(precision="bfloat16"), [16])
    _, expected, _ = one_step(TrainStep(), [16])
    assert result.loss.dtype == torch.float32
    assert {p.dtype for p in network.model.parameters()} == {torch.float32}
    assert float(result.loss) != float(expected.loss)
    assert float(result.loss) == pytest.approx(float(expected.loss), rel=2e-2)


def test_no_batch_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="training step 0: got no batch"):
        one_step(TrainStep(), [])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_weigh_the_pictures_of_a_class(accumulation: int, smoothing: float) -> None:
    """The gradient of the mean over pictures of weight · loss, whatever the batches."""
    weights = (0.5, 2.0, 1.0)
    step = TrainStep(class_weights=weights, label_smoothing=smoothing, gradient_accumulation=accumulation)
    network, result, data = one_step(step, [12] if accumulation == 1 else [8, 4], lr=0.0)
    model = tiny_network().model.eval()
    log_probabilities = model(data.images).log_softmax(1)
    own = -log_probabilities[torch.arange(12), data.labels] * torch.tensor(weights)[data.labels]
    spread = -(log_probabilities * torch.tensor(weights)).mean(1)
    expected = ((1 - smoothing) * own + smoothing * spread).mean()
    expected.backward()
    assert float(result.loss) == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(network.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_balanced_weights_give_every_class_the_same_say() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])  # nobody of class 2
    weights = balanced_class_weights(labels, 4)
    assert weights == pytest.approx((10 / 18, 10 / 9, 0.0, 10 / 3))
    assert sum(weights[label] for label in labels.tolist()) == pytest.approx(10)
