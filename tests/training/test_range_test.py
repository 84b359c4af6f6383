from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyserve.errors import InvalidArgumentError
from pyserve.training import step as step_module
from pyserve.training.callbacks import CurvePoint
from pyserve.training.checkpoint import CheckpointStore
from pyserve.training.learner import Learner, Stage
from pyserve.training.optim import export_state, learning_rates
from pyserve.training.range_test import RangeTest, range_test
from tests.training.support import PHASES, RandomBatches, Recorder, same, tiny_config, tiny_network


def test_the_rates_of_each_mode() -> None:
    np.testing.assert_allclose(RangeTest().rates(), np.geomspace(1e-7, 10, 100), rtol=1e-12)
    np.testing.assert_allclose(
        RangeTest(0.001, 0.02, 50, "linear").rates(), np.linspace(0.001, 0.02, 50), rtol=1e-12
    )
    doubling = RangeTest(mode="doubling").rates()
    assert doubling == [1e-7 * 2**i for i in range(27)]
    assert doubling[-1] <= 10 < 2 * doubling[-1]
    assert RangeTest(0.5, 4.0, 9, "doubling").rates() == [0.5, 1.0, 2.0, 4.0]


def test_the_curve_is_the_debiased_average_and_ends_at_the_factor_of_the_best() -> None:
    heard: list[CurvePoint] = []
    data = RandomBatches(64)
    curve = range_test(tiny_network(), tiny_config(), data, RangeTest(1e-5, 1e3, 300), on_point=heard.append)
    assert curve.points == heard
    assert curve.diverged
    assert curve.planned == 300
    assert curve.lrs == RangeTest(1e-5, 1e3, 300).rates()[: len(heard)]
    assert max(data.epochs_read) > 5  # the data began again and again
    assert data.open_streams == 0
    losses = np.array(curve.losses)
    for i in range(len(losses)):
        weights = 0.98 ** np.arange(i, -1, -1)
        assert curve.smoothed[i] == pytest.approx((weights * losses[: i + 1]).sum() / weights.sum())
    best = np.minimum.accumulate(np.array(curve.smoothed)[10:])
    above = np.array(curve.smoothed)[11:] > 4 * best[:-1]
    assert list(np.flatnonzero(above)) == [len(above) - 1]  # the first that is above is the last there is
    assert all(0 <= p.accuracy <= 1 for p in curve.points)


def scripted(monkeypatch: pytest.MonkeyPatch, losses: Callable[[int], float]) -> None:
    result = step_module.StepResult
    monkeypatch.setattr(
        step_module.TrainStep,
        "run",
        lambda self, model, optimizer, batches, step: result(torch.tensor(losses(step)), torch.tensor(1), 2),
    )


def test_the_best_counts_only_after_ten_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda step: 0.1 if step < 5 else 2.0)
    curve = range_test(tiny_network(), tiny_config(), RandomBatches(), RangeTest(steps=20))
    assert (len(curve.points), curve.diverged) == (20, False)  # 20 × the first losses, but those do not count
    scripted(monkeypatch, lambda step: 0.1 if step < 15 else 9.0)
    curve = range_test(tiny_network(), tiny_config(), RandomBatches(), RangeTest(steps=50))
    assert curve.diverged
    assert curve.smoothed[-1] > 4 * curve.smoothed[-2] or curve.smoothed[-1] > 0.4
    assert all(loss <= 0.4 for loss in curve.smoothed[:-1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_without_a_point(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    scripted(monkeypatch, lambda step: bad if step == 7 else 1.0)
    curve = range_test(tiny_network(), tiny_config(), RandomBatches(), RangeTest())
    assert (len(curve.points), curve.diverged) == (7, True)


def test_it_trains_as_the_training_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulation, frozen body, ratios of rates, BatchNorm freeze, precision: seen from inside the step."""
    seen: list[tuple[tuple[float, ...], int, bool, str]] = []
    real = step_module.TrainStep.run

    def spy(self, model, optimizer, batches, step):  # type: ignore[no-untyped-def]
        batches = list(batches)
        seen.append((learning_rates(optimizer), len(batches), model.norm.training, self.precision))
        return real(self, model, optimizer, batches, step)

    monkeypatch.setattr(step_module.TrainStep, "run", spy)
    config = dataclasses.replace(
        tiny_config(gradient_accumulation=3, precision="bfloat16"), body_lr_factor=0.01, freeze_batch_norm=True
    )
    range_test(tiny_network(), config, RandomBatches(), RangeTest(1e-3, 1e-2, 10))
    assert len(seen) == 10
    assert seen[-1][0] == pytest.approx((1e-4, 1e-3, 1e-2))
    assert {entry[1:] for entry in seen} == {(3, False, "bfloat16")}
    seen.clear()
    range_test(tiny_network(), config, RandomBatches(), RangeTest(1e-3, 1e-2, 10), frozen=True)
    assert seen[-1][0] == pytest.approx((1e-2,))


def test_repeats_differ_and_each_repeats_itself() -> None:
    def curve(run: int) -> list[float]:
        return range_test(tiny_network(), tiny_config(), RandomBatches(), RangeTest(steps=12), run=run).losses

    assert curve(0) == curve(0)
    assert curve(0) != curve(1)


def learner(train: RandomBatches, **options: Any) -> Learner:
    """A training of all phases on the same batches."""
    network = tiny_network()
    stage = Stage(network, train, RandomBatches(16, seed=5))
    return Learner(network, tiny_config(), PHASES, lambda phase: stage, **options)


class Witness:
    """Everything that a range test might disturb, as bytes."""

    def __init__(self, folder: Path) -> None:
        self.train = RandomBatches(48)
        self.learner = learner(self.train, callbacks=Recorder(stop_at=14), store=CheckpointStore(folder))
        assert self.learner.fit() == "interrupted"  # in the middle of the second epoch's steps
        for parameter in self.learner.network.model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)

    def look(self) -> dict[str, torch.Tensor]:
        network, running = self.learner.network, self.learner._running
        assert running is not None
        optimizer = running.optimizer
        seen = {f"model.{k}": v.clone() for k, v in network.model.state_dict().items()}
        seen |= {f"optimizer.{k}": v.clone() for k, v in export_state(optimizer).items()}
        seen |= {f"grad.{n}": p.grad.clone() for n, p in network.model.named_parameters() if p.grad is not None}
        seen["requires_grad"] = torch.tensor([p.requires_grad for p in network.model.parameters()])
        seen["training"] = torch.tensor([m.training for m in network.model.modules()])
        seen["rates"] = torch.tensor([[g["lr"], *g["betas"]] for g in optimizer.param_groups], dtype=torch.float64)
        seen["state"] = torch.frombuffer(bytearray(repr(self.learner.state).encode()), dtype=torch.uint8)
        seen["torch_rng"] = torch.get_rng_state()
        seen["numpy_rng"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))
        seen["python_rng"] = torch.tensor(random.getstate()[1])
        seen["grad_mode"] = torch.tensor([torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")])
        order = torch.cat([y for epoch in range(3) for _, y in self.train.epoch(epoch)])
        return seen | {"order": order}


def explode() -> None:
    raise ZeroDivisionError("in the middle")


def end_normally(count: int) -> None:
    del count


def end_by_exception(count: int) -> None:
    if count == 8:
        explode()


def end_by_interrupt(count: int) -> None:
    if count == 8:
        raise KeyboardInterrupt


@pytest.mark.parametrize("ending", [end_normally, end_by_exception, end_by_interrupt])
@pytest.mark.parametrize("end_lr", [1e-2, 1e30])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_leaves_everything_bit_for_bit_as_it_was(
    tmp_path: Path, ending: Callable[[int], None], end_lr: float, frozen: bool
) -> None:
    witness = Witness(tmp_path)
    before = witness.look()
    files = sorted(str(p) for p in tmp_path.rglob("*"))
    count = 0

    def before_step() -> None:
        nonlocal count
        count += 1
        random.random()
        np.random.rand()
        torch.rand(3)
        ending(count)

    try:
        curve = range_test(
            witness.learner.network,
            tiny_config(),
            witness.train,
            RangeTest(1e-6, end_lr, 40),
            frozen=frozen,
            before_step=before_step,
        )
        assert curve.diverged == (end_lr > 1)
        ended = "normally"
    except (ZeroDivisionError, KeyboardInterrupt) as error:
        ended = type(error).__name__
    assert (
        ended
        == {
            end_normally: "normally",
            end_by_exception: "ZeroDivisionError",
            end_by_interrupt: "KeyboardInterrupt",
        }[ending]
    )
    after = witness.look()
    assert same(before, after), [k for k in before if not torch.equal(before[k], after[k])]
    assert sorted(str(p) for p in tmp_path.rglob("*")) == files
    assert witness.train.open_streams == 0


def test_a_training_after_it_is_the_training_without_it(tmp_path: Path) -> None:
    def fit(find: bool) -> dict[str, torch.Tensor]:
        data = RandomBatches(48)
        training = learner(data, callbacks=Recorder())
        if find:
            range_test(training.network, training.config, data, RangeTest(steps=30))
        training.fit()
        return training.network.weights()

    assert same(fit(find=False), fit(find=True))


def test_the_original_is_not_even_touched_while_it_runs() -> None:
    network = tiny_network()
    before = network.weights()
    untouched: list[bool] = []
    range_test(
        network,
        tiny_config(),
        RandomBatches(),
        RangeTest(1e-2, 1, 12),
        on_point=lambda point: untouched.append(same(before, network.weights())),
    )
    assert untouched == [True] * 12


def test_no_batches_is_an_error() -> None:
    class Nothing(RandomBatches):
        def __len__(self) -> int:
            return 0

    with pytest.raises(InvalidArgumentError, match="less than 2 pictures"):
        range_test(tiny_network(), tiny_config(), Nothing(), RangeTest())
