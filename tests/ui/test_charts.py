from __future__ import annotations

from typing import Any

import pytest

from pyserve.ui.charts import Curves
from pyserve.v1 import jobs_pb2


def step(number: int, loss: float) -> jobs_pb2.Event:
    return jobs_pb2.Event(step=jobs_pb2.StepDone(step=number, loss=loss))


def epoch(**metrics: float) -> jobs_pb2.Event:
    return jobs_pb2.Event(epoch=jobs_pb2.EpochDone(metrics=metrics))


def point(rate: float, loss: float, run: int = 0) -> jobs_pb2.Event:
    return jobs_pb2.Event(curve_point=jobs_pb2.CurvePoint(learning_rate=rate, smoothed_loss=loss, run=run))


def curves(*events: jobs_pb2.Event) -> Curves:
    found = Curves()
    assert all(found.add(event) for event in events)
    return found


def series(options: dict[str, Any]) -> dict[str, list[list[float]]]:
    return {line["name"]: line["data"] for line in options["series"]}


def test_losses_of_both_parts_over_the_steps() -> None:
    found = curves(step(1, 2.0), step(5, 1.0), epoch(loss=1.5, accuracy=0.5), step(10, 0.5), epoch(loss=0.75))
    assert series(found.losses()) == {
        "training": [[1, 2.0], [5, 1.0], [10, 0.5]],
        "validation": [[5, 1.5], [10, 0.75]],
    }
    assert series(found.accuracies()) == {"validation": [[1, 50.0]]}


def test_a_long_training_is_drawn_as_means_of_neighbours() -> None:
    found = curves(*(step(i, float(i)) for i in range(1, 1001)))
    drawn = series(found.losses())["training"]
    assert len(drawn) == 334
    assert drawn[:2] == [[3, 2.0], [6, 5.0]]
    assert drawn[-1] == [1000, 1000.0]


def test_a_range_test_shows_its_runs_and_the_suggestion() -> None:
    found = curves(point(1e-4, 2.0), point(1e-2, 1.0), point(1.0, 90.0), point(1e-4, 2.2, run=1))
    lines = series(found.range_test(0.01))
    assert list(lines) == ["run 1", "run 2", "suggested: 0.01"]
    assert lines["run 1"] == [[1e-4, 2.0], [1e-2, 1.0], [1.0, 90.0]]
    limits = found.range_test(0.01)["yAxis"]
    assert lines["suggested: 0.01"] == [[0.01, limits["min"]], [0.01, limits["max"]]]
    assert 0 <= limits["min"] < 1.0
    assert 2.2 < limits["max"] < 10  # the divergence is cut off


def test_a_phase_begins_a_range_test_of_its_own() -> None:
    found = curves(point(1e-4, 2.0), jobs_pb2.Event(phase=jobs_pb2.PhaseStarted(phase=2)))
    assert not found.finds_rate


@pytest.mark.parametrize("kind", ["log", "warning", "checkpoint"])
def test_other_events_change_no_chart(kind: str) -> None:
    event = jobs_pb2.Event()
    getattr(event, kind).SetInParent()
    found = Curves()
    assert not found.add(event)
    assert not found.finds_rate
    assert not found.trains
    assert series(found.range_test()) == {}
