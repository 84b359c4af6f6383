"""Two models on the same pictures, worked out by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from pyserve.errors import FailedPreconditionError
from pyserve.insight.comparison import compare, mcnemar
from pyserve.insight.predictions import Evaluation, confusion_matrix


def evaluation(predicted: str, targets: str, labels: str = "abc") -> Evaluation:
    """Letters are classes."""
    rows = np.eye(len(labels), dtype=np.float32)[[labels.index(p) for p in predicted]]
    indices = np.array([labels.index(t) for t in targets])
    return Evaluation(rows, indices, tuple(map(str, range(len(targets)))), tuple(labels))


def test_fixed_and_broken_pictures() -> None:
    before = evaluation("abbca", "aabcc")
    after = evaluation("aacbc", "aabcc")
    found = compare(before, after)
    assert found.fixed.tolist() == [1, 4]
    assert found.broken.tolist() == [2, 3]
    assert (found.both_right, found.both_wrong) == (1, 0)
    assert found.change.tolist() == [[1, -1, 0], [0, -1, 1], [-1, 1, 0]]
    assert found.change.sum() == 0


def test_models_with_their_classes_in_another_order() -> None:
    before = evaluation("abca", "aabc", "abc")
    after = evaluation("acba", "aabc", "cab")
    found = compare(before, after)
    assert found.after.labels == ("a", "b", "c")
    assert confusion_matrix(found.after).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert found.after.accuracy == after.accuracy
    assert found.fixed.tolist() == [2]
    assert found.broken.tolist() == []


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (5, 5), (10, 2), (2, 10), (40, 25)])
def test_p_value_is_the_binomial_sum(fixed: int, broken: int) -> None:
    n = fixed + broken
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(min(fixed, broken) + 1)) / 2**n)
    assert mcnemar(fixed, broken) == pytest.approx(expected, rel=1e-9)


def test_p_value_of_very_many_pictures() -> None:
    assert mcnemar(30_000, 30_400) == pytest.approx(0.1037, abs=2e-3)  # normal: z = 400 / √60400 = 1.628


def test_other_classes_and_other_pictures_are_told() -> None:
    before = evaluation("ab", "ab", "abc")
    with pytest.raises(FailedPreconditionError, match="the first alone knows 'c', the second alone knows 'd'"):
        compare(before, evaluation("ab", "ab", "abd"))
    with pytest.raises(FailedPreconditionError, match="about other pictures"):
        compare(before, evaluation("abc", "abc"))
