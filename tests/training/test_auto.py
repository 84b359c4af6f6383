"""Recipe auto: what it measures, says, keeps, and turns into."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyserve.data.manifest import Manifest
from pyserve.spec import CHOSEN_BY_AUTO, TrainSpec, architecture_defaults
from pyserve.training.auto import PLAN_FILE, decide, sizes_for, typical_side
from pyserve.training.callbacks import Stopped
from pyserve.training.prepare import TrainDirs
from pyserve.training.recipe import train
from tests.training.support import Recorder


def asked(**fields: object) -> TrainSpec:
    values = {"architecture": "smallnet", "recipe": "auto", "time_budget_minutes": 0.5, "seed": 1, "mixup": 0.2}
    return TrainSpec(dataset="datasets/tints", device="cpu", **{**values, **fields})


class Ticks:
    """A clock that goes on by the same time whenever it is asked."""

    def __init__(self, tick_s: float) -> None:
        self.now, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now


def test_sizes_lie_between_the_least_and_the_networks_own() -> None:
    assert sizes_for(32, 400) == (32,)
    assert sizes_for(224, 500) == (96, 128, 160, 192, 224)
    assert sizes_for(224, 160) == (96, 128, 160, 192)  # 160 pixels are enlarged to 200 at most
    assert sizes_for(224, 40) == (96,)


def test_the_typical_side_is_that_of_the_pictures(manifest: Manifest) -> None:
    assert typical_side(manifest.part_items("train"), Path(manifest.root)) == 20  # they are 20 × 24


def test_it_becomes_a_spec_that_says_everything(manifest: Manifest, tmp_path: Path) -> None:
    listener = Recorder()
    dirs, minute = TrainDirs(tmp_path, tmp_path), asked(time_budget_minutes=1.0)
    spec, epochs_s = decide(minute, manifest, dirs, listener, elapsed_s=4.0, resume=False, clock=Ticks(0.04))
    assert (spec.recipe, spec.time_budget_minutes) == ("schedule", None)
    assert (spec.seed, spec.mixup, spec.tta) == (1, 0.2, True)
    # every step takes a tick: 40 ms for 8 pictures, so an epoch of 36 + 18 pictures takes 0.27 s, and the 60 that
    # help at most fit; a range test of 100 steps takes 4 s, less than a tenth of what is left
    assert (spec.batch_size, spec.image_size, spec.augment, spec.epochs) == (8, 32, "crop", 60)
    assert spec.schedule == "one_cycle"
    assert epochs_s == pytest.approx(60 * (36 + 18) * 0.04 / 8)
    assert spec.lr_from == "self"
    text = "\n".join(listener.lines)
    for words in (
        "36 training and 18 validation pictures, typically 20 pixels",
        "batches of 8",
        "bfloat16 has 1.00 ×",
    ):
        assert words in text
    assert "at 32 pixels 200 pictures/s are learnt from, 200 measured" in text
    assert "and more than 60 would not help" in text
    assert "the same again: architecture=smallnet image_size=32 batch_size=8 epochs=60" in text


def test_the_plan_is_kept_for_a_worker_that_comes_after(manifest: Manifest, tmp_path: Path) -> None:
    dirs = TrainDirs(tmp_path, tmp_path)

    def again(*, resume: bool, tick_s: float) -> tuple[TrainSpec, float]:
        return decide(asked(), manifest, dirs, Recorder(), elapsed_s=0.0, resume=resume, clock=Ticks(tick_s))

    first = again(resume=True, tick_s=0.25)  # it died before it had chosen
    assert (tmp_path / PLAN_FILE).exists()
    assert again(resume=True, tick_s=0.001) == first
    assert again(resume=False, tick_s=0.001) != first


def test_what_was_asked_stays(manifest: Manifest, tmp_path: Path) -> None:
    fields = {"image_size": 16, "learning_rate": 0.02, "tta": False, "model_id": "mine", "optimizer": "sgd"}
    spec, _ = decide(
        asked(**fields), manifest, TrainDirs(tmp_path, tmp_path), Recorder(), elapsed_s=0.0, resume=False
    )
    assert {name: getattr(spec, name) for name in fields} == fields
    assert not spec.finds_rate_itself
    assert set(CHOSEN_BY_AUTO) < set(TrainSpec.model_fields)


def test_a_network_with_a_recipe_of_its_own_keeps_it(manifest: Manifest, tmp_path: Path) -> None:
    own = architecture_defaults("whitenednet")
    spec, _ = decide(
        asked(architecture="whitenednet", mixup=0.0),
        manifest,
        TrainDirs(tmp_path, tmp_path),
        Recorder(),
        elapsed_s=0.0,
        resume=False,
        clock=Ticks(0.001),
    )
    kept = {name: getattr(spec, name) for name in own if name != "batch_size"}
    assert kept == {name: value for name, value in own.items() if name != "batch_size"}
    assert spec.batch_size == 8  # 36 pictures
    assert not spec.finds_rate_itself
    plain = TrainSpec(dataset="datasets/tints", architecture="whitenednet", batch_size=8)
    assert spec.effective_learning_rate == plain.effective_learning_rate


def test_it_can_be_stopped_while_it_measures(manifest: Manifest, tmp_path: Path) -> None:
    listener = Recorder(stop_at=2, kind="cancel")
    with pytest.raises(Stopped):
        decide(asked(), manifest, TrainDirs(tmp_path, tmp_path), listener, elapsed_s=0.0, resume=False)
    assert not (tmp_path / PLAN_FILE).exists()


def test_a_training_that_overruns_says_so(manifest: Manifest, tmp_path: Path, cache: Path) -> None:
    spec = TrainSpec(
        dataset="datasets/tints", architecture="smallnet", image_size=16, batch_size=8, epochs=2, device="cpu"
    )
    listener = Recorder()
    train(spec, manifest, TrainDirs(tmp_path, cache), listener, time_budget_s=1e-3)
    assert [code for code, _ in listener.warnings] == ["over_budget"]
    assert "the machine is slower than when it was measured" in listener.warnings[0][1]
    listener = Recorder()
    train(spec, manifest, TrainDirs(tmp_path / "other", cache), listener, time_budget_s=1e6)
    assert listener.warnings == []
