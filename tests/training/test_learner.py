from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from pyserve.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from pyserve.training.checkpoint import NEWEST, PREVIOUS, CheckpointStore, load
from pyserve.training.config import LearnerConfig
from pyserve.training.evaluation import evaluate
from pyserve.training.learner import Learner, Stage
from pyserve.training.phases import Phase
from tests.training.support import PHASES, RandomBatches, Recorder, same, tiny_config, tiny_network


def make(
    folder: Path | None = None,
    listener: Recorder | None = None,
    *,
    config: LearnerConfig | None = None,
    phases: tuple[Phase, ...] = PHASES,
    train: RandomBatches | None = None,
    valid: RandomBatches | None = None,
    identity: str = "a",
) -> Learner:
    network = tiny_network()
    train = RandomBatches() if train is None else train
    stage = Stage(network, train, valid or RandomBatches(20, seed=7))
    return Learner(
        network,
        config or tiny_config(),
        phases,
        lambda index: stage,
        callbacks=listener or Recorder(),
        store=CheckpointStore(folder) if folder else None,
        identity=identity,
    )


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder / NEWEST).tensors


def test_it_learns_and_tells_of_every_step_and_epoch() -> None:
    listener = Recorder()
    learner = make(listener=listener, phases=(Phase(20, 0.05),), train=RandomBatches(96))
    assert learner.fit() == "done"
    assert len(listener.steps) == 20 * 12
    assert [s.step for s in listener.steps] == list(range(1, 241))
    assert {s.total_steps for s in listener.steps} == {240}
    assert [e.epoch for e in listener.epochs] == list(range(1, 21))
    assert listener.epochs[-1].metrics["train_loss"] < 0.6 * listener.epochs[0].metrics["train_loss"]
    assert listener.epochs[-1].metrics["accuracy"] > 0.6
    for number, epoch in enumerate(listener.epochs):
        steps = [s for s in listener.steps if s.epoch == number + 1]
        mean = sum(s.loss * s.images for s in steps) / sum(s.images for s in steps)
        assert epoch.metrics["train_loss"] == pytest.approx(mean)
    assert learner.state.history[4]["accuracy"] == listener.epochs[4].metrics["accuracy"]
    assert learner.state.elapsed_s == pytest.approx(sum(e.elapsed_s for e in listener.epochs), abs=0.5)


def test_the_best_weights_are_those_of_the_best_epoch() -> None:
    for monitor in ("accuracy", "loss"):
        listener = Recorder()
        config = dataclasses.replace(tiny_config(), monitor=monitor)
        learner = make(listener=listener, config=config, phases=(Phase(8, 0.3, "constant"),))
        learner.fit()
        values = [e.metrics[monitor] for e in listener.epochs]
        best = values.index(max(values) if monitor == "accuracy" else min(values))
        assert learner.state.best_epoch == best + 1
        assert [e.best for e in listener.epochs][best]
        assert same(learner.network.weights(), learner.best_weights)
        views = (((x,), y) for x, y in RandomBatches(20, seed=7).epoch(0))
        again = evaluate(learner.network.model, views, lambda: None)
        assert again == pytest.approx(dict(learner.state.best_metrics))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    torch.manual_seed(1)
    make(tmp_path / "a").fit()
    torch.manual_seed(2)  # what the global generator did before plays no part
    before = torch.get_rng_state()
    make(tmp_path / "b").fit()
    assert torch.equal(torch.get_rng_state(), before)
    make(tmp_path / "c", config=tiny_config(seed=1)).fit()
    assert same(last_weights(tmp_path / "a"), last_weights(tmp_path / "b"))
    assert not same(last_weights(tmp_path / "a"), last_weights(tmp_path / "c"))


# 3 epochs of 5 steps and 3 validation batches: 24 questions. Stops fall before the first step, in the frozen
# phase, in each epoch's validation, right after an epoch, in the middle of the main phase.
@pytest.mark.parametrize("stop_at", [0, 1, 3, 5, 6, 8, 10, 13, 16, 19, 21, 23])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_interrupted_anywhere_and_resumed_ends_bit_for_bit_the_same(
    tmp_path: Path, stop_at: int, optimizer: str
) -> None:
    config = dataclasses.replace(tiny_config(), optimizer=optimizer, body_lr_factor=0.1)
    undisturbed = make(tmp_path / "whole", config=config)
    assert undisturbed.fit() == "done"

    listener = Recorder(stop_at=stop_at)
    first = make(tmp_path / "parts", listener, config=config)
    assert first.fit() == "interrupted"
    assert listener.asked == stop_at + 1
    assert listener.checkpoints[-1][0] == first.state.step == len(listener.steps)

    second = make(tmp_path / "parts", config=config)
    assert second.restore()
    assert second.fit() == "done"
    assert same(last_weights(tmp_path / "whole"), last_weights(tmp_path / "parts"))
    assert same(undisturbed.best_weights, second.best_weights)
    assert second.state.best_epoch == undisturbed.state.best_epoch
    strip = [{k: v for k, v in e.items() if k != "elapsed_s"} for e in undisturbed.state.history]
    assert [{k: v for k, v in e.items() if k != "elapsed_s"} for e in second.state.history] == strip


def test_interrupted_after_every_step_with_accumulation_and_bfloat16(tmp_path: Path) -> None:
    config = tiny_config(gradient_accumulation=2, precision="bfloat16", gradient_clip_norm=0.5)
    make(tmp_path / "whole", config=config).fit()
    learner, attempts = make(tmp_path / "parts", Recorder(stop_at=1), config=config), 1
    while learner.fit() != "done":
        attempts += 1
        learner = make(tmp_path / "parts", Recorder(stop_at=4), config=config)
        assert learner.restore()
    assert attempts >= 4
    assert learner.state.step == 9  # ⌈5 batches / 2⌉ steps in each of 3 epochs
    assert same(last_weights(tmp_path / "whole"), last_weights(tmp_path / "parts"))


def test_a_killed_training_goes_on_from_the_checkpoint_of_the_interval(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(), checkpoint_interval_s=0.0)
    make(tmp_path / "whole", config=config).fit()

    class Killed(Recorder):
        def on_step(self, info) -> None:  # type: ignore[no-untyped-def]
            super().on_step(info)
            if len(self.steps) == 8:
                raise SystemExit

    listener = Killed()
    with pytest.raises(SystemExit):
        make(tmp_path / "parts", listener, config=config).fit()
    assert listener.checkpoints == [(s, s // 5) if s % 5 else (s, s // 5 - 1) for s in range(1, 6)] + [
        (5, 1),
        (6, 1),
        (7, 1),
    ]  # after every step, and at the epoch's end
    second = make(tmp_path / "parts", config=config)
    assert second.restore()
    assert second.state.step == 7
    second.fit()
    assert same(last_weights(tmp_path / "whole"), last_weights(tmp_path / "parts"))


def test_a_finished_training_restores_as_finished(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.fit()
    listener = Recorder()
    second = make(tmp_path, listener)
    assert second.restore()
    assert second.finished
    assert second.fit() == "done"
    assert listener.steps == []
    assert same(first.network.weights(), second.network.weights())


def test_a_damaged_checkpoint_is_told_and_the_one_before_used(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    whole.fit()
    make(tmp_path / "parts", Recorder(stop_at=19)).fit()
    (tmp_path / "parts" / NEWEST).write_bytes(b"damaged")
    listener = Recorder()
    second = make(tmp_path / "parts", listener)
    assert second.restore()
    assert [code for code, _ in listener.warnings] == ["checkpoint_damaged"]
    second.fit()
    assert same(whole.best_weights, second.best_weights)
    for name in (NEWEST, PREVIOUS):
        (tmp_path / "parts" / name).write_bytes(b"damaged")
    with pytest.raises(DataLossError):
        make(tmp_path / "parts").restore()


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    make(tmp_path, Recorder(stop_at=3)).fit()
    with pytest.raises(FailedPreconditionError, match="another spec or other data"):
        make(tmp_path, identity="b").restore()
    assert not make(tmp_path / "nothing").restore()
    assert not make().restore()


def test_another_number_of_threads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, Recorder(stop_at=3)).fit()
    begun = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: begun + 1)
    listener = Recorder()
    make(tmp_path, listener).restore()
    assert listener.warnings[0][0] == "threads_changed"
    assert f"resumed with {begun + 1} threads, begun with {begun}" in listener.warnings[0][1]


@pytest.mark.parametrize(("kind", "status"), [("cancel", "cancelled"), ("interrupt", "interrupted")])
def test_a_stop_takes_effect_within_a_step_and_keeps_a_checkpoint(tmp_path: Path, kind: str, status: str) -> None:
    listener = Recorder(stop_at=7, kind=kind)  # type: ignore[arg-type]
    train = RandomBatches()
    learner = make(tmp_path, listener, phases=(Phase(2, 0.02),), train=train)
    assert learner.fit() == status
    assert (learner.state.step, train.open_streams) == (5, 0)  # stopped in the first validation; nothing left open
    assert same(
        {k[6:]: v for k, v in last_weights(tmp_path).items() if k.startswith("model.")}, learner.network.weights()
    )


def test_only_the_head_learns_in_the_frozen_phase_and_everything_after(tmp_path: Path) -> None:
    start = tiny_network().weights()
    frozen = make(
        phases=(Phase(1, 0.05, frozen=True),), config=dataclasses.replace(tiny_config(), freeze_batch_norm=True)
    )
    frozen.fit()
    after = frozen.network.weights()
    assert {k for k in start if not torch.equal(start[k], after[k])} == {"fc.weight", "fc.bias"}
    listener = Recorder(stop_at=13)
    both = make(tmp_path, listener, config=dataclasses.replace(tiny_config(), body_lr_factor=0.01))
    both.fit()
    after = both.network.weights()
    assert all(not torch.equal(start[k], after[k]) for k in start)
    rates = [s.learning_rates for s in listener.steps]
    assert {len(r) for r in rates[:5]} == {1}
    assert all(r == pytest.approx((r[2] / 100, r[2] / 10, r[2])) for r in rates[5:])


def script_accuracy(learner: Learner, values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(values)
    monkeypatch.setattr(
        "pyserve.training.learner.evaluate", lambda *arguments: {"accuracy": (v := next(left)), "loss": 2.0 - v}
    )


@pytest.mark.parametrize(
    ("phases", "accuracies", "epochs_run", "best"),
    [
        ((Phase(9, 0.01),), [0.1, 0.5, 0.4, 0.5, 0.3, 0.9], 4, 2),  # an equal one is no improvement
        ((Phase(6, 0.01),), [0.1, 0.2, 0.1, 0.3, 0.2, 0.1], 6, 4),  # the end comes first
        ((Phase(9, 0.01, "sgdr", cycle_epochs=3),), [0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.9], 3, 1),
        ((Phase(12, 0.01, "sgdr", cycle_epochs=1, cycle_mult=2),), [0.3, 0.5, *[0.2] * 9], 7, 2),
        ((Phase(3, 0.01, frozen=True), Phase(6, 0.01)), [0.9, *[0.1] * 8], 5, 1),  # never in the frozen phase
    ],
)
def test_early_stopping_waits_with_patience_and_rolls_back(
    monkeypatch: pytest.MonkeyPatch, phases: tuple[Phase, ...], accuracies: list[float], epochs_run: int, best: int
) -> None:
    kept: list[dict[str, torch.Tensor]] = []

    class Keeping(Recorder):
        def on_epoch(self, info) -> None:  # type: ignore[no-untyped-def]
            kept.append(learner.network.weights())

    learner = make(listener=Keeping(), phases=phases, config=dataclasses.replace(tiny_config(), patience=2))
    script_accuracy(learner, accuracies, monkeypatch)
    learner.fit()
    assert (learner.state.epoch, learner.state.best_epoch) == (epochs_run, best)
    assert learner.state.stopped_early == (epochs_run < sum(p.epochs for p in phases))
    assert same(learner.network.weights(), kept[best - 1])


def test_without_patience_it_never_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(phases=(Phase(5, 0.01),))
    script_accuracy(learner, [0.9, 0.1, 0.1, 0.1, 0.1], monkeypatch)
    learner.fit()
    assert (learner.state.epoch, learner.state.stopped_early, learner.state.best_epoch) == (5, False, 1)


def test_a_rate_far_too_high_is_said_aloud() -> None:
    listener = Recorder()
    config = dataclasses.replace(tiny_config(), optimizer="sgd", suggested_lr=0.02)
    make(
        listener=listener,
        config=config,
        phases=(Phase(3, 1e-4, "constant"), Phase(5, 3.0)),
        train=RandomBatches(160),
    ).fit()
    said = [message for code, message in listener.warnings if code == "loss_rising"]
    assert said
    assert "the learning rate is probably too high; the finder suggests 0.02" in said[0]


class Poisoned(RandomBatches):
    """Its pictures become infinite in one batch of one epoch."""

    def epoch(self, epoch: int, start_step: int = 0):  # type: ignore[no-untyped-def]
        for number, (x, y) in enumerate(super().epoch(epoch, start_step), start_step):
            yield (x * math.inf if (epoch, number) == (1, 2) else x), y


def test_a_loss_that_is_not_finite_ends_it_with_the_last_good_checkpoint_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(), suggested_lr=0.01)
    learner = make(tmp_path, phases=(Phase(3, 0.8, "constant"),), train=Poisoned(), config=config)
    with pytest.raises(FailedPreconditionError) as caught:
        learner.fit()
    assert caught.value.message == (
        "the training loss became nan at step 8, lr 0.8: the learning rate is probably too high; "
        "the finder suggests 0.01; the last good checkpoint, of step 5, is kept"
    )
    checkpoint = load(tmp_path / NEWEST)
    assert checkpoint.state["learner"]["step"] == 5
    assert all(bool(v.isfinite().all()) for v in checkpoint.tensors.values())


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    class Breaking(Recorder):
        def on_step(self, info) -> None:  # type: ignore[no-untyped-def]
            super().on_step(info)
            if len(self.steps) == 7:
                with torch.no_grad():
                    learner.network.model.fc.weight[0, 0] = math.inf

    cancelled = Breaking(stop_at=10, kind="cancel")  # asked before the eighth step: 5 steps, 3 batches, 2 steps
    learner = make(tmp_path, cancelled, phases=(Phase(3, 0.01),))
    assert learner.fit() == "cancelled"
    assert [code for code, _ in cancelled.warnings] == ["diverged"]
    assert load(tmp_path / NEWEST).state["learner"]["step"] == 5

    listener = Breaking()
    config = dataclasses.replace(tiny_config(), checkpoint_interval_s=0.0)
    learner = make(tmp_path, listener, phases=(Phase(3, 0.01),), config=config)
    with pytest.raises(FailedPreconditionError, match="weights are no longer finite at step 7"):
        learner.fit()
    assert load(tmp_path / NEWEST).state["learner"]["step"] == 6


def test_a_validation_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(FailedPreconditionError, match="validation loss became nan at step 5"):
        make(valid=RandomBatches(8, scale=math.inf)).fit()


class Nothing(RandomBatches):
    def __len__(self) -> int:
        return 0


def test_no_batches_is_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="less than 2 pictures"):
        make(train=Nothing()).fit()


def test_the_learner_needs_torch_alone() -> None:
    """The check on a GPU machine has torch, torchvision and numpy, and nothing else."""
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('pydantic', 'safetensors', 'grpc', 'google.protobuf', 'PIL', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import pyserve.training.learner, pyserve.training.schedules, pyserve.training.range_test"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[2])
