"""Job specs: their sentences, and that they are those of the protos."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from pydantic import BaseModel

from pyserve import spec
from pyserve.errors import InvalidArgumentError
from pyserve.v1 import jobs_pb2

DATASET = {"dataset": "datasets/pets"}


@pytest.mark.parametrize(
    ("model", "descriptor"),
    [
        (spec.TrainSpec, jobs_pb2.TrainSpec.DESCRIPTOR),
        (spec.FindLearningRateSpec, jobs_pb2.FindLearningRateSpec.DESCRIPTOR),
    ],
)
def test_fields_are_those_of_the_proto(model: type[BaseModel], descriptor: Descriptor) -> None:
    assert list(model.model_fields) == [f.name for f in descriptor.fields]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": -1}, "train.epochs: got -1, expected ≥ 1"),
        ({"epochs": 0}, "train.epochs: got 0, expected ≥ 1"),
        ({"learning_rate": float("nan")}, "train.learning_rate: got nan, expected a finite number"),
        ({"learning_rate": float("inf")}, "train.learning_rate: got inf, expected a finite number"),
        ({"learning_rate": 0.0}, "train.learning_rate: got 0.0, expected > 0"),
        ({"label_smoothing": 1.0}, "train.label_smoothing: got 1.0, expected < 1"),
        ({"schedule": "cycle"}, "train.schedule: got 'cycle', expected one of 'one_cycle', 'sgdr'"),
        ({"dataset": "pets"}, "train.dataset: got 'pets', expected text matching ^datasets/"),
        ({"dataset": "datasets/../x"}, "train.dataset: got 'datasets/../x', expected text matching"),
        ({"model_id": "../x"}, "train.model_id: got '../x', expected text matching"),
        ({"colour": 1}, "train.colour: got 1, expected no such field"),
        ({"seed": 2**40}, "train.seed: got 1099511627776, expected < 2147483648"),
        ({"weights": "w" * 1000}, None),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], sentence: str | None) -> None:
    if sentence is None:  # a name of any length is a name; whether it exists is the server's question
        assert spec.parse(spec.TrainSpec, {**DATASET, **values}, "train").weights == values["weights"]
        return
    with pytest.raises(InvalidArgumentError) as caught:
        spec.parse(spec.TrainSpec, {**DATASET, **values}, "train")
    assert caught.value.message.startswith(sentence)
    assert [v.field for v in caught.value.fields] == [f"train.{next(iter(values))}"]


def test_all_wrong_fields_are_told_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.parse(spec.TrainSpec, {"epochs": 0, "batch_size": 0}, "train")
    assert [v.field for v in caught.value.fields] == ["train.dataset", "train.batch_size", "train.epochs"]


def test_range_test_wants_end_above_start() -> None:
    with pytest.raises(InvalidArgumentError, match=r"got 10\.0, expected a rate above start_lr = 20"):
        spec.parse(spec.FindLearningRateSpec, {"training": DATASET, "start_lr": 20.0}, "find_learning_rate")


def test_the_rule_is_that_of_the_trainings_schedule_where_none_is_given() -> None:
    def rule(schedule: str, **fields: Any) -> str:
        training = {**DATASET, "schedule": schedule}
        found = spec.parse(spec.FindLearningRateSpec, {"training": training, **fields}, "find_learning_rate")
        return found.effective_rule

    assert (rule("constant"), rule("one_cycle"), rule("sgdr")) == ("middle", "peak", "peak")
    assert rule("constant", rule="valley") == "valley"
    expected = (
        r"^find_learning_rate\.rule: got 'knee', expected one of "
        r"'middle', 'peak', 'valley', 'steep', 'slide' or 'minimum'$"
    )
    with pytest.raises(InvalidArgumentError, match=expected):
        rule("constant", rule="knee")


def test_a_peak_is_not_a_rate_to_hold() -> None:
    held = spec.TrainSpec(**DATASET, schedule="constant")
    peak = spec.FindLearningRateSpec(training=spec.TrainSpec(**DATASET))
    digests = ("a" * 64, "a" * 64)
    assert spec.comparable(held, peak, digests) == ["rule for the schedule: middle here, peak there"]
    chosen = spec.FindLearningRateSpec(training=spec.TrainSpec(**DATASET), rule="peak")
    assert spec.comparable(held, chosen, digests) == []
    assert spec.comparable(held.model_copy(update={"schedule": "sgdr"}), peak, digests) == []


def test_nested_fields_carry_their_path() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^find_learning_rate\.training\.epochs: got 0, expected ≥ 1$"):
        spec.parse(spec.FindLearningRateSpec, {"training": {**DATASET, "epochs": 0}}, "find_learning_rate")


def test_defaults_depend_on_optimizer_and_weights() -> None:
    adamw = spec.TrainSpec(**DATASET)
    sgd = spec.TrainSpec(**DATASET, optimizer="sgd", weights="imagenet", learning_rate=0.5, weight_decay=0.0)
    assert (adamw.effective_learning_rate, adamw.effective_weight_decay) == (1e-3, 0.01)
    assert (sgd.effective_learning_rate, sgd.effective_weight_decay) == (0.5, 0.0)
    assert (adamw.effective_freeze_batch_norm, sgd.effective_freeze_batch_norm) == (False, True)
    assert (adamw.output_model_id, adamw.dataset_id) == ("pets", "pets")


def test_specs_survive_json() -> None:
    original = spec.FindLearningRateSpec(training=spec.TrainSpec(**DATASET, image_size=64), repeats=3)
    assert spec.FindLearningRateSpec.model_validate_json(original.model_dump_json()) == original


def test_comparable_names_every_difference_that_moves_the_learning_rate() -> None:
    sought = spec.TrainSpec(dataset="datasets/pets", image_size=64)
    finder = spec.FindLearningRateSpec(training=sought)
    assert spec.comparable(sought.model_copy(update={"epochs": 9, "learning_rate": 0.1}), finder, ("a", "a")) == []
    other = {
        "image_size": 96,
        "batch_size": 8,
        "augment": "none",
        "architecture": "resnet34",
        "weights": "imagenet",
        "freeze_body": True,
        "optimizer": "sgd",
    }
    told = spec.comparable(sought.model_copy(update=other), finder, ("a" * 64, "b" * 64))
    assert told == [
        "data version: aaaaaaaaaaaa here, bbbbbbbbbbbb there",
        "image size: 96 here, 64 there",
        "pictures per step: 8 here, 64 there",
        "augmentation: none here, standard there",
        "architecture: resnet34 here, resnet18 there",
        "weights: imagenet here, none there",
        "frozen body: True here, False there",
        "frozen BatchNorm: True here, False there",
        "optimizer: sgd here, adamw there",
    ]


WEIGHTS = {**DATASET, "weights": "imagenet"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"recipe": "lesson2"},
            "recipe: got 'lesson2', expected one of 'schedule', 'fine_tune', 'lesson1' or 'auto'",
        ),
        ({"recipe": "lesson1"}, "weights: got '', expected weights to begin with: recipe lesson1 adapts"),
        ({"recipe": "fine_tune"}, "weights: got '', expected weights to begin with: recipe fine_tune adapts"),
        (
            {**WEIGHTS, "recipe": "lesson1", "freeze_body": True},
            "freeze_body: got True, expected false: recipe less",
        ),
        ({"recipe": "auto"}, "time_budget_minutes: got nothing, expected a number: recipe auto plans for it"),
        ({"time_budget_minutes": 5.0}, "time_budget_minutes: got 5.0, expected nothing, or recipe auto"),
        (
            {"recipe": "auto", "time_budget_minutes": 5.0, "epochs": 5},
            "epochs: got 5, expected nothing: recipe auto chooses it from time_budget_minutes",
        ),
        ({"precompute": True}, "precompute: got True, expected false, or weights"),
        ({"image_size": 64, "start_image_size": 96}, "start_image_size: got 96, expected ≤ image_size = 64"),
        ({"class_weights": "equal"}, "class_weights: got 'equal', expected one of 'none' or 'balanced'"),
        ({"mixup": -0.1}, "mixup: got -0.1, expected ≥ 0"),
        ({"ema_decay": 1.0}, "ema_decay: got 1.0, expected < 1"),
        ({"max_shift": 0.0}, "max_shift: got 0.0, expected > 0"),
        ({"max_shift": 0.6}, "max_shift: got 0.6, expected ≤ 0.5"),
        ({"lr_from": "jobs/x"}, "lr_from: got 'jobs/x', expected text matching"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        spec.parse(spec.TrainSpec, {**DATASET, **values}, "train")
    assert caught.value.message.startswith(f"train.{sentence}")
    assert [v.field for v in caught.value.fields] == [f"train.{sentence.partition(':')[0]}"]


def test_a_range_test_wants_a_training_that_is_decided() -> None:
    training = {**DATASET, "recipe": "auto", "time_budget_minutes": 5.0}
    with pytest.raises(InvalidArgumentError) as caught:
        spec.parse(spec.FindLearningRateSpec, {"training": training}, "find_learning_rate")
    assert caught.value.fields[0].field == "find_learning_rate.training.recipe"


def test_a_recipe_sets_defaults_and_nothing_else() -> None:
    lesson = spec.TrainSpec(**WEIGHTS, recipe="lesson1")
    assert (lesson.epochs, lesson.schedule, lesson.cycle_mult, lesson.lr_from) == (7, "sgdr", 2, "self")
    assert lesson.finds_rate_itself
    own = spec.TrainSpec(**WEIGHTS, recipe="lesson1", epochs=3, learning_rate=0.01, tta=False)
    assert (own.epochs, own.schedule, own.tta) == (3, "sgdr", False)
    assert not own.finds_rate_itself
    tuned = spec.TrainSpec(**WEIGHTS, recipe="fine_tune", lr_from="self")
    assert (tuned.learning_rate, tuned.finds_rate_itself) == (None, True)
    for recipe in ("schedule", "fine_tune", "lesson1"):
        whole = spec.TrainSpec(**WEIGHTS, recipe=recipe)
        assert spec.TrainSpec.model_validate_json(whole.model_dump_json()) == whole


def test_an_architecture_sets_what_it_was_made_for() -> None:
    network: dict[str, Any] = {**DATASET, "architecture": "whitenednet"}
    plain = spec.TrainSpec(**network)
    assert (plain.optimizer, plain.batch_size, plain.augment, plain.label_smoothing) == ("sgd", 512, "crop", 0.2)
    assert (plain.schedule, plain.momentum, plain.max_shift) == ("slanted_triangular", 0.85, 1 / 16)
    assert plain.alternate_flips
    assert plain.effective_learning_rate == pytest.approx(0.75)
    assert spec.TrainSpec(**network, batch_size=128).effective_learning_rate == pytest.approx(0.75 / 4)
    assert spec.TrainSpec(**network, learning_rate=0.1).effective_learning_rate == 0.1
    assert spec.TrainSpec(**network, label_smoothing=0.0, augment="none").augment == "none"
    adamw = spec.TrainSpec(**network, optimizer="adamw")
    assert (adamw.effective_learning_rate, adamw.effective_weight_decay, adamw.batch_size) == (1e-3, 0.01, 512)
    assert adamw.momentum == 0.9
    trained = spec.TrainSpec(**network, weights="models/pets")
    assert (trained.optimizer, trained.effective_learning_rate, trained.batch_size) == ("adamw", 1e-3, 64)
    assert spec.TrainSpec.model_validate_json(plain.model_dump_json()) == plain
    auto = spec.TrainSpec(**network, recipe="auto", time_budget_minutes=3.0)
    assert (auto.optimizer, auto.batch_size, auto.label_smoothing) == ("sgd", 64, 0.2)
    assert (auto.schedule, auto.max_shift) == ("one_cycle", 1 / 16)


def test_what_auto_will_choose_is_not_shown_before() -> None:
    asked = spec.TrainSpec(**DATASET, recipe="auto", time_budget_minutes=3.0, image_size=64)
    shown = asked.model_dump(exclude_none=True)
    assert not set(shown) & set(spec.CHOSEN_BY_AUTO)
    assert shown["image_size"] == 64
    assert shown["tta"] is True
    assert spec.TrainSpec.model_validate_json(asked.model_dump_json()) == asked


def test_the_image_size_is_the_architectures_where_none_is_given() -> None:
    assert spec.TrainSpec(**DATASET).image_size_or(224) == 224
    assert spec.TrainSpec(**DATASET, image_size=64).image_size_or(224) == 64
    with pytest.raises(
        InvalidArgumentError, match=r"^image_size: got 16, expected ≥ 32, which vgg16 takes at least$"
    ):
        spec.TrainSpec(**DATASET, architecture="vgg16", image_size=16).image_size_or(224, 32)
    with pytest.raises(InvalidArgumentError, match=r"^start_image_size: got 16, expected ≥ 32"):
        spec.TrainSpec(**DATASET, start_image_size=16).image_size_or(224, 32)
    with pytest.raises(InvalidArgumentError, match=r"start_image_size: got 64, expected ≤ image_size = 32"):
        spec.TrainSpec(**DATASET, start_image_size=64).image_size_or(32)
