"""The recipes on real pictures of a few pixels: phases, rates that are found, and going on after any stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pyserve import models
from pyserve.data.manifest import Manifest
from pyserve.errors import FailedPreconditionError
from pyserve.spec import TrainSpec
from pyserve.training.callbacks import EpochInfo, PhaseInfo, StepInfo
from pyserve.training.checkpoint import NEWEST, load
from pyserve.training.evaluation import logits_of
from pyserve.training.lr_finder import Suggestion
from pyserve.training.prepare import TrainDirs
from pyserve.training.recipe import TrainOutcome, train
from tests.training.support import Recorder, same

SIZE = 16


class Listener(Recorder):
    """Records phases, too; asks to stop after `stop_after`: a count of steps, or words of a log line."""

    def __init__(self, stop_after: int | str | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.phases: list[PhaseInfo] = []

    def on_phase(self, info: PhaseInfo) -> None:
        self.phases.append(info)

    def on_step(self, info: StepInfo) -> None:
        super().on_step(info)
        self.stop_at = 0 if info.step == self.stop_after else None

    def on_log(self, message: str) -> None:
        super().on_log(message)
        if isinstance(self.stop_after, str) and self.stop_after in message:
            self.stop_at = 0


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a body with other classes, as pretrained ones are."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "body.safetensors"
    save_file(models.create_model("smallnet", 7).state_dict(), path)
    return path


def tints(**fields: object) -> TrainSpec:
    values = {"architecture": "smallnet", "weights": "body.safetensors", "image_size": SIZE, "batch_size": 8}
    return TrainSpec(dataset="datasets/tints", device="cpu", **{**values, **fields})


def run(
    spec: TrainSpec,
    manifest: Manifest,
    folder: Path,
    cache: Path,
    weights: Path,
    listener: Listener | None = None,
    *,
    resume: bool = False,
) -> TrainOutcome:
    dirs = TrainDirs(folder, cache, weights_roots=[weights.parent])
    return train(spec, manifest, dirs, listener or Listener(), resume=resume)


LESSON = {"recipe": "lesson1", "epochs": 3, "frozen_epochs": 1, "seed": 2}


@pytest.fixture(scope="module")
def lesson(
    manifest: Manifest,
    tmp_path_factory: pytest.TempPathFactory,
    cache: Path,
    weights: Path,
) -> tuple[TrainOutcome, Listener, Path]:
    folder = tmp_path_factory.mktemp("lesson")
    listener = Listener()
    return run(tints(**LESSON), manifest, folder, cache, weights, listener), listener, folder


def test_lesson1_goes_through_its_phases(lesson: tuple[TrainOutcome, Listener, Path]) -> None:
    outcome, listener, _ = lesson
    assert outcome.status == "done"
    names = ["head on activations", "head on pictures", "whole network"]
    assert [(p.name, p.phase, p.total_phases) for p in listener.phases] == [
        (n, i + 1, 3) for i, n in enumerate(names)
    ]
    assert [(p.first_epoch, p.epochs, p.schedule, p.frozen) for p in listener.phases] == [
        (1, 2, "one_cycle", True),
        (3, 1, "sgdr", True),
        (4, 3, "sgdr", False),
    ]
    assert [e.phase for e in listener.epochs] == [names[0]] * 2 + [names[1]] + [names[2]] * 3
    assert [s.phase for s in listener.steps] == [names[0]] * 10 + [names[1]] * 5 + [names[2]] * 15
    assert {s.total_steps for s in listener.steps} == {30}
    assert {len(s.learning_rates) for s in listener.steps[:15]} == {1}
    assert {len(s.learning_rates) for s in listener.steps[15:]} == {3}  # discriminative rates
    last = listener.steps[-1].learning_rates
    assert last == pytest.approx((last[2] / 100, last[2] / 10, last[2]))
    assert outcome.epochs_run == 6
    assert set(outcome.metrics) == {"loss", "accuracy", "tta_loss", "tta_accuracy"}


def test_lesson1_finds_a_rate_for_each_phase(lesson: tuple[TrainOutcome, Listener, Path]) -> None:
    outcome, listener, _ = lesson
    assert {p.run for p in listener.points} == {0, 1, 2}
    said = [line for line in listener.lines if "suggests" in line or "looking for" in line]
    assert [line.partition(" ")[0] for line in said] == ["looking", "rule"] * 3
    for phase, line in zip(listener.phases, said[1::2], strict=True):
        assert phase.learning_rate == pytest.approx(float(line.rpartition(" ")[2]), rel=1e-2)
    assert outcome.learning_rate == listener.phases[-1].learning_rate
    assert max(s.learning_rates[-1] for s in listener.steps[15:]) == outcome.learning_rate


def test_only_the_head_moves_before_the_body_is_unfrozen(
    lesson: tuple[TrainOutcome, Listener, Path],
    manifest: Manifest,
    tmp_path: Path,
    cache: Path,
    weights: Path,
) -> None:
    run(tints(**LESSON), manifest, tmp_path, cache, weights, Listener(stop_after=15))
    from safetensors.torch import load_file

    came = load_file(weights)
    kept = {k[6:]: v for k, v in load(tmp_path / "checkpoints" / NEWEST).tensors.items() if k.startswith("model.")}
    changed = {k for k in came if came[k].shape != kept[k].shape or not torch.equal(came[k], kept[k])}
    assert changed == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "stop_after",
    [
        "looking for the learning rate of phase 1",
        4,
        10,
        "rate of phase 2",
        12,
        "rate of phase 3",
        15,
        22,
        "test-time",
    ],
)
def test_lesson1_goes_on_after_any_stop_to_the_same_weights(
    lesson: tuple[TrainOutcome, Listener, Path],
    manifest: Manifest,
    tmp_path: Path,
    cache: Path,
    weights: Path,
    stop_after: int | str,
) -> None:
    whole, _, folder = lesson
    first = run(tints(**LESSON), manifest, tmp_path, cache, weights, Listener(stop_after))
    assert first.status == "interrupted"
    second = run(tints(**LESSON), manifest, tmp_path, cache, weights, Listener(), resume=True)
    assert second.status == "done"
    assert second.metrics == whole.metrics
    last = [load(path / "checkpoints" / NEWEST).tensors for path in (folder, tmp_path)]
    assert same(*last)
    assert whole.model is not None
    assert second.model is not None
    assert same(dict(whole.model.state_dict()), dict(second.model.state_dict()))


EVERYTHING = {
    "recipe": "fine_tune",
    "epochs": 3,
    "mixup": 0.4,
    "cutmix": 1.0,
    "ema_decay": 0.9,
    "class_weights": "balanced",
    "balanced_sampling": True,
    "label_smoothing": 0.1,
    "start_image_size": 8,
    "gradient_accumulation": 2,
    "gradient_clip_norm": 1.0,
    "augment": "strong",
}


@pytest.mark.parametrize("stop_after", [2, 3, 5, 10])
def test_everything_at_once_goes_on_after_any_stop_to_the_same_weights(
    manifest: Manifest,
    tmp_path: Path,
    cache: Path,
    weights: Path,
    stop_after: int,
) -> None:
    run(tints(**EVERYTHING), manifest, tmp_path / "whole", cache, weights)
    first = run(tints(**EVERYTHING), manifest, tmp_path / "parts", cache, weights, Listener(stop_after))
    assert first.status == "interrupted"
    second = run(tints(**EVERYTHING), manifest, tmp_path / "parts", cache, weights, resume=True)
    assert second.status == "done"
    assert same(*(load(tmp_path / name / "checkpoints" / NEWEST).tensors for name in ("whole", "parts")))


def test_pictures_grow_and_are_measured_at_their_full_size(
    manifest: Manifest,
    tmp_path: Path,
    cache: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, int]] = []
    spec = tints(epochs=4, start_image_size=8, learning_rate=0.01)

    def watched(model, x, precision):  # type: ignore[no-untyped-def]
        seen.append((model.training, x.shape[-1]))
        return logits_of(model, x, precision)

    monkeypatch.setattr("pyserve.training.step.logits_of", watched)
    monkeypatch.setattr("pyserve.training.evaluation.logits_of", watched)
    outcome = run(spec, manifest, tmp_path, cache, weights)
    training = [size for learns, size in seen if learns]
    assert training == [8] * 5 + [11] * 5 + [13] * 5 + [16] * 5
    assert {size for learns, size in seen if not learns} == {SIZE}
    assert outcome.image_size == SIZE


def test_a_cycle_that_gets_worse_ends_it_and_the_best_is_kept(
    manifest: Manifest,
    tmp_path: Path,
    cache: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = iter([0.5, 0.6, 0.7, 0.9, 0.8, 0.8, *[0.0] * 9])
    monkeypatch.setattr(
        "pyserve.training.learner.evaluate", lambda *arguments: {"accuracy": next(accuracies), "loss": 1.0}
    )
    listener = Listener()
    outcome = run(tints(**{**LESSON, "epochs": 7, "tta": False}), manifest, tmp_path, cache, weights, listener)
    # phases of 2 and 1 epochs, then cycles that end with epochs 4, 6 and 10; the best is the fourth's
    assert [(e.epoch, e.best) for e in listener.epochs][3:] == [(4, True), (5, False), (6, False)]
    assert (outcome.stopped_early, outcome.epochs_run, outcome.best_epoch) == (True, 6, 4)
    assert isinstance(listener.epochs[0], EpochInfo)


def test_a_curve_of_no_use_is_said_and_the_default_rate_taken(
    manifest: Manifest,
    tmp_path: Path,
    cache: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(curves: object) -> None:
        raise FailedPreconditionError("the loss is flat")

    monkeypatch.setattr("pyserve.training.recipe.suggest_all", refuse)
    listener = Listener()
    outcome = run(tints(epochs=1, lr_from="self"), manifest, tmp_path, cache, weights, listener)
    assert outcome.learning_rate == 1e-3
    assert listener.warnings == [("no_learning_rate_found", "the loss is flat; taking 0.001 instead")]


def test_a_later_curve_of_no_use_leaves_the_rate_of_the_phase_before(
    manifest: Manifest,
    tmp_path: Path,
    cache: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The head has learnt all it can: no range test of it can fall any more."""
    found = [Suggestion("peak", 0.0123)]

    def once(curves: object) -> dict[str, Suggestion]:
        if not found:
            raise FailedPreconditionError("the loss is flat")
        return {"peak": found.pop()}

    monkeypatch.setattr("pyserve.training.recipe.useful", lambda curves, warn: curves)
    monkeypatch.setattr("pyserve.training.recipe.suggest_all", once)
    listener = Listener()
    run(tints(**{**LESSON, "tta": False}), manifest, tmp_path, cache, weights, listener)
    assert [phase.learning_rate for phase in listener.phases] == [0.0123] * 3
    assert listener.warnings == [("no_learning_rate_found", "the loss is flat; taking 0.0123 instead")] * 2
