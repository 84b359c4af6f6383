from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pyserve.data.manifest import Manifest
from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.spec import FindLearningRateSpec, TrainSpec
from pyserve.training.checkpoint import NEWEST, load
from pyserve.training.lr_finder import find_learning_rate
from pyserve.training.lr_rules import RULES
from pyserve.training.prepare import TrainDirs, choose_device, learner_config
from pyserve.training.recipe import TrainOutcome, train
from tests.training.support import Recorder, same


def tints(**fields: object) -> TrainSpec:
    values = {"architecture": "smallnet", "image_size": 16, "batch_size": 8, "epochs": 3, "learning_rate": 0.01}
    return TrainSpec(dataset="datasets/tints", device="cpu", **{**values, **fields})


def run(
    spec: TrainSpec,
    manifest: Manifest,
    folder: Path,
    cache: Path,
    listener: Recorder | None = None,
    *,
    resume: bool = False,
) -> TrainOutcome:
    return train(spec, manifest, TrainDirs(folder, cache), listener or Recorder(), resume=resume)


def test_it_trains_a_plain_model_with_the_best_weights(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    listener = Recorder()
    outcome = run(tints(epochs=6), manifest, tmp_path, cache, listener)
    assert outcome.status == "done"
    assert outcome.epochs_run == 6 == len(listener.epochs) == len(outcome.history)
    assert outcome.metrics["accuracy"] > 0.9
    best = outcome.history[outcome.best_epoch - 1]
    assert outcome.metrics == {k: best[k] for k in ("loss", "accuracy")}
    assert outcome.learning_rate == 0.01
    assert outcome.elapsed_s > 0
    assert outcome.image_size == 16 <= outcome.presize
    assert len(listener.steps) == 6 * 5  # 36 pictures in batches of 8
    assert outcome.model is not None
    assert not outcome.model.training
    kept = load(tmp_path / "checkpoints" / NEWEST).tensors
    ours = outcome.model.state_dict()
    assert same(dict(ours), {k[5:]: v for k, v in kept.items() if k.startswith("best.")})


@pytest.mark.parametrize("stop_at", [4, 9])
def test_interrupted_and_resumed_gives_the_same_model(
    manifest: Manifest, tmp_path: Path, cache: Path, stop_at: int
) -> None:
    spec = tints(frozen_epochs=1, epochs=1, augment="strong", body_lr_factor=0.1)
    whole = run(spec, manifest, tmp_path / "whole", cache)
    # reading the pictures asks too: the count begins where the steps do
    listener = Recorder()
    listener.on_step = lambda info: setattr(listener, "stop_at", 0 if info.step == stop_at else None)  # type: ignore[method-assign]
    first = run(spec, manifest, tmp_path / "parts", cache, listener)
    assert first.status == "interrupted"
    again = Recorder()
    second = run(spec, manifest, tmp_path / "parts", cache, again, resume=True)
    assert second.status == "done"
    assert f"resumed after step {stop_at}, epoch {stop_at // 5}" in again.lines
    assert len(again.steps) == 10 - stop_at
    assert whole.model is not None
    assert second.model is not None
    assert same(dict(whole.model.state_dict()), dict(second.model.state_dict()))
    last = [load(tmp_path / name / "checkpoints" / NEWEST).tensors for name in ("whole", "parts")]
    assert same(*last)


def test_a_stop_before_the_first_step(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    outcome = run(tints(), manifest, tmp_path, cache, Recorder(stop_at=0, kind="cancel"))
    assert (outcome.status, outcome.epochs_run) == ("cancelled", 0)


def test_a_checkpoint_of_other_settings_is_refused(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    run(tints(epochs=1), manifest, tmp_path, cache)
    with pytest.raises(FailedPreconditionError, match="another spec or other data"):
        run(tints(epochs=2), manifest, tmp_path, cache, resume=True)
    other = dataclasses.replace(manifest, digest="e" * 64)
    with pytest.raises(FailedPreconditionError, match="another spec or other data"):
        run(tints(epochs=1), other, tmp_path, cache, resume=True)


def test_weights_of_a_trained_model_are_taken_on(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    from safetensors.torch import save_file

    first = run(tints(epochs=4), manifest, tmp_path / "a", cache)
    assert first.model is not None
    save_file(first.model.state_dict(), tmp_path / "model.safetensors")
    spec = tints(epochs=1, weights="models/tints/versions/1", freeze_body=True, learning_rate=1e-6)
    dirs = TrainDirs(tmp_path / "b", cache, weights_path=tmp_path / "model.safetensors")
    second = train(spec, manifest, dirs, Recorder())
    assert second.metrics["accuracy"] >= first.metrics["accuracy"] - 0.1
    before, after = first.model.state_dict(), second.model.state_dict()  # type: ignore[union-attr]
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    head = {k for k in before if k.startswith(next(iter(changed)).rpartition(".")[0])}
    assert changed <= head  # body and its BatchNorm statistics are as they came
    assert len(changed) < len(before) / 2


def test_an_unknown_architecture_is_told(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="resnet18"):
        run(tints(architecture="resnet19"), manifest, tmp_path, cache)


def test_a_missing_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(FailedPreconditionError, match="got 'cuda', but torch sees no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")


def test_a_cycle_cut_short_is_told(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    listener = Recorder()
    run(tints(epochs=2, schedule="sgdr", cycle_epochs=1, cycle_mult=2), manifest, tmp_path, cache, listener)
    assert [code for code, _ in listener.warnings] == ["cycle_cut_short"]


def test_batch_norm_stays_only_where_it_came_with_weights() -> None:
    def freezes(**fields: object) -> bool:
        return learner_config(tints(**fields), torch.tensor([0, 1]), 2).freeze_batch_norm

    assert not freezes()
    assert not freezes(freeze_batch_norm=True)
    assert freezes(weights="imagenet")
    assert not freezes(weights="imagenet", freeze_batch_norm=False)


def test_class_weights_are_those_of_the_training_part() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert learner_config(tints(), labels, 2).step.class_weights is None
    weighted = learner_config(tints(class_weights="balanced"), labels, 2)
    assert weighted.step.class_weights == pytest.approx((4 / 6, 2.0))


def test_the_finder_finds_a_rate_with_a_spread(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    listener = Recorder()
    spec = FindLearningRateSpec(training=tints(epochs=1), steps=40, repeats=2, start_lr=1e-5)
    result = find_learning_rate(spec, manifest, TrainDirs(tmp_path, cache), listener)
    assert result.status == "done"
    assert set(result.suggestions) == set(RULES)
    chosen = result.suggestions[result.rule]
    assert chosen.learning_rate == result.learning_rate
    assert chosen.lowest is not None
    assert chosen.highest is not None
    assert 1e-5 <= chosen.lowest <= chosen.learning_rate <= chosen.highest <= 10  # type: ignore[operator]
    assert [p.run for p in listener.points] == sorted(p.run for p in listener.points)
    assert {p.run for p in listener.points} == {0, 1}
    assert result.lrs == [p.learning_rate for p in listener.points if p.run == 0]
    assert result.runs[0].losses != result.runs[1].losses
    assert list(tmp_path.iterdir()) == []  # it wrote nothing into the job's folder
    same_again = find_learning_rate(spec, manifest, TrainDirs(tmp_path, cache), Recorder())
    assert same_again.learning_rate == result.learning_rate


def test_the_finder_can_be_cancelled(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    listener = Recorder(kind="cancel")
    listener.on_curve_point = lambda point: setattr(listener, "stop_at", 0)  # type: ignore[method-assign]
    spec = FindLearningRateSpec(training=tints())
    result = find_learning_rate(spec, manifest, TrainDirs(tmp_path, cache), listener)
    assert result.status == "cancelled"
    assert (result.learning_rate, result.suggestions) == (None, {})


def test_the_finder_falls_back_where_the_rule_has_no_answer(
    manifest: Manifest, tmp_path: Path, cache: Path
) -> None:
    listener = Recorder()
    spec = FindLearningRateSpec(training=tints(), steps=20, rule="slide", start_lr=1e-4, end_lr=1e-1)
    result = find_learning_rate(spec, manifest, TrainDirs(tmp_path, cache), listener)
    assert result.rule != "slide"
    assert result.learning_rate is not None
    assert [code for code, _ in listener.warnings] == ["rule_without_answer"]
    assert "slide: needs 17 points" in listener.warnings[0][1]


def test_the_finder_refuses_a_curve_of_no_use(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    spec = FindLearningRateSpec(
        training=tints(augment="none", batch_size=36), steps=20, start_lr=1e-9, end_lr=1e-8
    )
    with pytest.raises(FailedPreconditionError, match="the loss is flat: from"):
        find_learning_rate(spec, manifest, TrainDirs(tmp_path, cache), Recorder())


@pytest.mark.parametrize(
    "fields",
    [
        {"freeze_body": True, "freeze_batch_norm": False},
        {"body_lr_factor": 0.01},
        {"precision": "bfloat16"},
        {"gradient_accumulation": 2, "batch_size": 4},
        {"schedule": "sgdr", "cycle_epochs": 1, "cycle_mult": 2, "epochs": 3},
        {"mixup": 0.4, "class_weights": "balanced", "balanced_sampling": True, "ema_decay": 0.9},
    ],
)
def test_the_finder_works_for_every_kind_of_training(
    manifest: Manifest, tmp_path: Path, cache: Path, fields: dict[str, object]
) -> None:
    spec = FindLearningRateSpec(training=tints(**fields), steps=60, start_lr=1e-5)
    result = find_learning_rate(spec, manifest, TrainDirs(tmp_path, cache), Recorder())
    assert result.status == "done"
    assert result.learning_rate is not None
    assert 1e-5 < result.learning_rate < 10
