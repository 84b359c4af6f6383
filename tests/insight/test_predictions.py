"""Orders and confusions against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyserve.errors import InvalidArgumentError
from pyserve.insight.predictions import (
    ORDERS,
    ConfusedPair,
    Evaluation,
    ImageLoss,
    confusion_matrix,
    most_confused,
    top_losses,
)

LABELS = ("ant", "bee", "cat")


@pytest.fixture
def evaluation() -> Evaluation:
    """Six pictures: a, b, d and f right, c and e wrong."""
    rows = [
        (0.90, 0.06, 0.04),  # a: ant, right, sure
        (0.40, 0.35, 0.25),  # b: ant, right, unsure
        (0.20, 0.70, 0.10),  # c: ant taken for bee
        (0.05, 0.95, 0.00),  # d: bee, right, surest
        (0.00, 0.80, 0.20),  # e: cat taken for bee, more confidently than c
        (0.30, 0.32, 0.38),  # f: cat, right, hardly
    ]
    return Evaluation(np.array(rows, np.float32), np.array([0, 0, 0, 1, 2, 2]), tuple("abcdef"), LABELS)


EXPECTED = {
    "most_incorrect": "ec",
    "most_correct": "dabf",
    "most_uncertain": "bfceda"[0:2],  # the gaps: b .05, f .06, c .5, e .6, a .84, d .90
    "highest_loss": "cefbad",  # losses: e and c −ln .2, f −ln .38, b −ln .4, a −ln .9, d −ln .95
}


@pytest.mark.parametrize("order", ORDERS)
def test_order(evaluation: Evaluation, order: str) -> None:
    expected = EXPECTED[order]
    found = top_losses(evaluation, order, count=len(expected))
    assert "".join(item.path for item in found) == expected


def test_most_uncertain_goes_on_to_the_surest(evaluation: Evaluation) -> None:
    assert "".join(item.path for item in top_losses(evaluation, "most_uncertain", 100)) == "bfcead"


def test_image_loss_tells_both_labels(evaluation: Evaluation) -> None:
    (worst,) = top_losses(evaluation, "most_incorrect", count=1)
    assert worst == ImageLoss(
        "e",
        "cat",
        "bee",
        pytest.approx(0.8),  # type: ignore[arg-type]
        pytest.approx(0.2),  # type: ignore[arg-type]
        pytest.approx(-math.log(0.2)),  # type: ignore[arg-type]
    )
    assert not worst.correct


def test_equal_keys_keep_the_order_of_the_data() -> None:
    same = Evaluation(np.full((5, 2), 0.5, np.float32), np.zeros(5, np.int64), tuple("vwxyz"), ("p", "q"))
    for order in ("most_correct", "most_uncertain", "highest_loss"):
        assert "".join(item.path for item in top_losses(same, order, 9)) == "vwxyz"


def test_confusion_matrix_has_data_in_rows_and_answers_in_columns(evaluation: Evaluation) -> None:
    counts = confusion_matrix(evaluation)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 1, 1]]
    assert counts.sum() == 6
    assert evaluation.accuracy == pytest.approx(4 / 6)
    expected = -np.log(np.array([0.9, 0.4, 0.2, 0.95, 0.2, 0.38])).mean()
    assert evaluation.loss == pytest.approx(expected, rel=1e-6)


def test_confusion_matrix_keeps_classes_that_nobody_has(evaluation: Evaluation) -> None:
    wider = Evaluation(
        np.pad(evaluation.probabilities, ((0, 0), (0, 2))),
        evaluation.targets,
        evaluation.paths,
        (*LABELS, "x", "y"),
    )
    assert confusion_matrix(wider).shape == (5, 5)


def test_most_confused_pairs() -> None:
    counts = np.array([[9, 2, 0], [5, 7, 2], [0, 0, 4]])
    assert most_confused(counts, LABELS) == [
        ConfusedPair("bee", "ant", 5),
        ConfusedPair("ant", "bee", 2),
        ConfusedPair("bee", "cat", 2),
    ]
    assert len(most_confused(counts, LABELS, count=1)) == 1
    assert most_confused(np.diag([3, 3, 3]), LABELS) == []
    assert counts[0, 0] == 9  # the caller's matrix stays


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    sure = Evaluation(np.array([[0.0, 1.0]], np.float32), np.array([0]), ("x",), ("p", "q"))
    assert sure.loss == pytest.approx(87.3, abs=0.1)


def test_one_class_and_no_pictures() -> None:
    one = Evaluation(np.ones((2, 1), np.float32), np.zeros(2, np.int64), ("x", "y"), ("p",))
    assert [item.path for item in top_losses(one, "most_uncertain")] == ["x", "y"]
    assert top_losses(one, "most_incorrect") == []
    none = Evaluation(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), (), ("p", "q"))
    assert all(top_losses(none, order) == [] for order in ORDERS)
    assert confusion_matrix(none).tolist() == [[0, 0], [0, 0]]
    assert math.isnan(none.accuracy)
    assert math.isnan(none.loss)


def test_errors_say_what_was_expected(evaluation: Evaluation) -> None:
    with pytest.raises(InvalidArgumentError, match=r"order: got 'best', expected one of most_incorrect, "):
        top_losses(evaluation, "best")
    with pytest.raises(InvalidArgumentError, match=r"count: got 0, expected ≥ 1"):
        top_losses(evaluation, count=0)
    with pytest.raises(InvalidArgumentError, match="3 targets"):
        Evaluation(evaluation.probabilities, evaluation.targets[:3], evaluation.paths, LABELS)


def test_one_class_or_one_cell_of_the_matrix(evaluation: Evaluation) -> None:
    def found(order: str, **of: str) -> str:
        return "".join(item.path for item in top_losses(evaluation, order, 9, **of))

    assert found("most_correct", label="ant") == "ab"
    assert found("most_uncertain", label="cat") == "fe"
    assert found("most_incorrect", predicted="bee") == "ec"
    assert found("most_incorrect", label="ant", predicted="bee") == "c"
    assert found("highest_loss", label="bee", predicted="cat") == ""
    with pytest.raises(InvalidArgumentError, match="label: got 'dog', expected one of 'ant', 'bee', 'cat'"):
        top_losses(evaluation, label="dog")
