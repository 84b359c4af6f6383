from __future__ import annotations

import re

import numpy as np
import pytest

from pyserve.training.loss_watch import BETA, LossWatch, not_finite


def feed(watch: LossWatch, losses: list[float], first_step: int = 1) -> list[str]:
    said = [watch.add(first_step + i, loss, 0.8, None) for i, loss in enumerate(losses)]
    return [sentence for sentence in said if sentence]


def test_the_average_is_debiased() -> None:
    watch, losses = LossWatch(), [3.0, 1.0, 2.0]
    assert watch.smoothed == 0.0
    feed(watch, losses)
    weights = np.array([BETA**2, BETA, 1.0])
    assert watch.smoothed == pytest.approx(float((weights * losses).sum() / weights.sum()))


def test_a_rising_loss_is_said_once_with_rate_steps_and_advice() -> None:
    watch = LossWatch()
    assert feed(watch, [1.0] * 40) == []
    falling = [0.9, 0.8]  # the lowest is that of step 42
    said = feed(watch, falling + [9.0] * 30, first_step=41)
    assert len(said) == 1
    assert re.fullmatch(
        r"loss rose 3\.\d× in 3 steps \(0\.971 → 3\.\d+\) at lr 0\.8: the learning rate is probably too high; "
        "the learning-rate finder suggests one that fits",
        said[0],
    ), said[0]
    assert feed(watch, [20.0] * 10, first_step=71) == []  # the same rise


def test_the_finders_rate_is_told_where_it_is_known() -> None:
    watch = LossWatch()
    feed(watch, [1.0] * 20)
    said = [watch.add(20 + i, 50.0, 0.8, 0.003) for i in range(3)]
    assert any(s and s.endswith("the finder suggests 0.003") for s in said)


@pytest.mark.parametrize(
    "losses",
    [
        [2.0 - 0.01 * i for i in range(150)],  # falls
        [50.0, *[2.0] * 30],  # the first loss of a fresh head
        [0.001] * 30 + [0.02] * 30,  # many times next to nothing
        [1.0, 1.6] * 30,  # noise
    ],
)
def test_a_healthy_loss_is_not_remarked_on(losses: list[float]) -> None:
    assert feed(LossWatch(), losses) == []


def test_a_second_rise_is_said_again_after_a_new_lowest() -> None:
    watch = LossWatch()
    assert len(feed(watch, [1.0] * 20 + [20.0] * 10 + [0.1] * 120 + [20.0] * 10)) == 2


def test_restart_forgets() -> None:
    watch = LossWatch()
    feed(watch, [0.1] * 20)
    watch.restart()
    assert watch == LossWatch()
    assert feed(watch, [3.0] * 30) == []


def test_the_sentence_of_the_end_names_step_rate_and_what_is_kept() -> None:
    assert not_finite("training loss became nan", 57, 0.8, 0.01, 40) == (
        "the training loss became nan at step 57, lr 0.8: the learning rate is probably too high; "
        "the finder suggests 0.01; the last good checkpoint, of step 40, is kept"
    )
    assert "checkpoint" not in not_finite("training loss became nan", 57, 0.8, None, 0)
