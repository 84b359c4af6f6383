"""Each recipe's phases, written out by hand."""

from __future__ import annotations

from typing import get_args

import pytest

from pyserve import spec
from pyserve.spec import TrainSpec
from pyserve.training.phases import Phase
from pyserve.training.plans import PLANS, plan_phases

WEIGHTS = {"dataset": "datasets/pets", "weights": "imagenet"}
ACTIVATIONS, PICTURES, WHOLE = "head on activations", "head on pictures", "whole network"


def test_the_spec_and_the_registry_name_the_same_recipes() -> None:
    assert set(PLANS) == set(get_args(spec.Recipe)) - {"auto"}


def test_a_schedule_is_what_its_fields_say() -> None:
    plain = TrainSpec(dataset="datasets/pets")
    assert plan_phases(plain) == (Phase(5, 1e-3, "one_cycle", name=WHOLE),)
    frozen = TrainSpec(
        **WEIGHTS, epochs=6, frozen_epochs=2, schedule="sgdr", cycle_epochs=2, cycle_mult=2, learning_rate=0.01
    )
    head = Phase(2, 0.01, frozen=True, name=PICTURES)
    assert plan_phases(frozen) == (head, Phase(6, 0.01, "sgdr", 2, 2, name=WHOLE))
    early = TrainSpec(**WEIGHTS, frozen_epochs=2, precompute=True, start_image_size=96, image_size=128)
    head, whole = plan_phases(early)
    assert (head.precomputed, head.name, whole.start_image_size) == (True, ACTIVATIONS, 96)


def test_a_body_frozen_throughout() -> None:
    [phase] = plan_phases(TrainSpec(**WEIGHTS, freeze_body=True))
    assert phase == Phase(5, 1e-3, frozen=True, name=PICTURES)
    [phase] = plan_phases(TrainSpec(**WEIGHTS, freeze_body=True, precompute=True))
    assert phase == Phase(5, 1e-3, frozen=True, precomputed=True, name=ACTIVATIONS)


def test_fine_tune_has_the_numbers_of_fastai() -> None:
    asked = TrainSpec(**WEIGHTS, recipe="fine_tune")
    assert (asked.learning_rate, asked.body_lr_factor) == (2e-3, 1 / 100)
    head, whole = plan_phases(asked)
    assert (head.epochs, head.learning_rate, head.frozen, head.schedule) == (1, 2e-3, True, "one_cycle")
    assert dict(head.shape) == {"pct_start": 0.99}
    assert (whole.epochs, whole.learning_rate, whole.frozen) == (4, 1e-3, False)
    assert dict(whole.shape) == {"pct_start": 0.3, "div": 5.0}
    # the first step is at a fifth of the rate, 30 % of the way it is at its highest
    assert whole.at(0, 101).lr_factor == pytest.approx(1 / 5)
    assert whole.at(121, 101).lr_factor == pytest.approx(1.0, abs=1e-3)  # 0.3 · (404 − 1)
    assert head.at(0, 101).lr_factor == pytest.approx(1 / 25)
    assert head.at(99, 101).lr_factor == pytest.approx(1.0)


def test_what_is_set_stays_set() -> None:
    asked = TrainSpec(
        **WEIGHTS, recipe="fine_tune", epochs=9, learning_rate=0.1, body_lr_factor=0.5, schedule="cosine"
    )
    head, whole = plan_phases(asked)
    assert (asked.body_lr_factor, head.learning_rate, whole.learning_rate, whole.epochs) == (0.5, 0.1, 0.05, 9)
    assert (whole.schedule, whole.shape) == ("cosine", ())
    found = TrainSpec(**WEIGHTS, recipe="fine_tune", lr_from="self")
    assert [phase.learning_rate for phase in plan_phases(found)] == [None, None]


def test_lesson1_is_the_lesson() -> None:
    asked = TrainSpec(**WEIGHTS, recipe="lesson1")
    head, augmented, whole = plan_phases(asked)
    assert head == Phase(2, None, frozen=True, precomputed=True, name=ACTIVATIONS)
    assert augmented == Phase(
        3, None, "sgdr", 1, frozen=True, rate_from_activations=True, name=PICTURES
    )  # cycle_len=1
    assert whole == Phase(7, None, "sgdr", 1, 2, name=WHOLE)
    assert [e for e in range(1, 8) if whole.may_stop_after(e)] == [1, 3, 7]  # cycle_mult=2: 1 + 2 + 4
    assert (asked.body_lr_factor, asked.tta, asked.early_stopping_patience) == (0.01, True, 2)
    told = plan_phases(TrainSpec(**WEIGHTS, recipe="lesson1", learning_rate=0.01))
    assert [phase.learning_rate for phase in told] == [0.01] * 3
    short = plan_phases(TrainSpec(**WEIGHTS, recipe="lesson1", frozen_epochs=0, precompute=False))
    assert [phase.name for phase in short] == [WHOLE]


def test_progressive_resizing_grows_to_the_full_size_in_three_quarters_of_the_epochs() -> None:
    phase = Phase(8, 0.1, start_image_size=128)
    sizes = [phase.image_size_at(epoch, 224) for epoch in range(8)]
    assert sizes == [128, 144, 160, 176, 192, 208, 224, 224]  # 16 pixels an epoch, rounded to steps of 16
    assert [Phase(8, 0.1).image_size_at(epoch, 224) for epoch in (0, 7)] == [224, 224]
    assert Phase(1, 0.1, start_image_size=16).image_size_at(0, 32) == 16
    assert [Phase(4, 0.1, start_image_size=20).image_size_at(e, 32) for e in range(4)] == [20, 24, 28, 32]
