from __future__ import annotations

import numpy as np
import pytest

from pyserve.errors import FailedPreconditionError
from pyserve.training.callbacks import CurvePoint
from pyserve.training.lr_finder import recommend, suggest_all, useful
from pyserve.training.lr_rules import RULES, suggest
from pyserve.training.range_test import Curve


def curve(center: float, run: int = 0, points: int = 100) -> Curve:
    lrs = np.geomspace(1e-7, 10, 100)[:points]
    x = np.log10(lrs / center)
    losses = 2 / (1 + np.exp(4 * (x + 1))) + np.exp(3 * (x - 1)) + 0.1
    return Curve(
        100, [CurvePoint(float(a), float(b), float(b), 0.5, run) for a, b in zip(lrs, losses, strict=True)]
    )


def test_the_spread_is_median_lowest_and_highest_of_the_runs() -> None:
    runs = [curve(1e-2), curve(1e-3, 1), curve(1e-1, 2), curve(1e-2, 3, points=12)]  # the last one is too short
    suggestions = suggest_all(runs)
    assert set(suggestions) == set(RULES)
    for rule, found in suggestions.items():
        single = sorted(suggest(rule, r) for r in runs[:3])
        assert (found.lowest, found.learning_rate, found.highest) == tuple(single)
        assert not found.problem


def test_a_rule_without_an_answer_says_why_and_another_is_recommended() -> None:
    suggestions = suggest_all([curve(1e-2, points=25)])
    assert suggestions["slide"].learning_rate is None
    assert "slide: needs 17 points" in suggestions["slide"].problem
    assert recommend(suggestions, "minimum").rule == "minimum"
    first = next(rule for rule, found in suggestions.items() if found.learning_rate is not None)
    assert recommend(suggestions, "slide").rule == first


def test_no_answer_at_all_is_an_error_that_says_why() -> None:
    suggestions = suggest_all([curve(1e-2, points=12)])
    assert all(s.learning_rate is None for s in suggestions.values())
    with pytest.raises(FailedPreconditionError, match="valley: the range test gave 12 points"):
        recommend(suggestions, "valley")


def test_useless_curves_are_told_and_left_out_and_none_left_is_an_error() -> None:
    good, flat = curve(1e-2), Curve(100, [CurvePoint(p.learning_rate, 2.0, 2.0, 0.1, 1) for p in curve(1).points])
    told: list[tuple[str, str]] = []
    assert useful([good, flat], lambda *said: told.append(said)) == [good]
    [(code, message)] = told
    assert code == "useless_curve"
    assert message.startswith("run 2 of 2 is left out: the loss is flat")
    with pytest.raises(FailedPreconditionError, match=r"^the loss is flat: from 2 it falls by 0\.0%"):
        useful([flat, flat], lambda *said: told.append(said))
    assert len(told) == 1
