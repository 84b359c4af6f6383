"""Two models on the same pictures: which became right, which became wrong, and whether that could be chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyserve.errors import FailedPreconditionError
from pyserve.insight.predictions import Evaluation, Indices, confusion_matrix, some


@dataclass(frozen=True)
class Comparison:
    """Two models side by side; index i of `fixed` and `broken` speaks of picture i of both evaluations."""

    before: Evaluation
    after: Evaluation  # its classes in the order of `before`
    fixed: Indices  # wrong before, right after
    broken: Indices  # right before, wrong after
    both_right: int
    both_wrong: int

    @property
    def change(self) -> npt.NDArray[np.int64]:
        """int64 [C, C]: pictures more (after) in each cell of the confusion matrix."""
        return confusion_matrix(self.after) - confusion_matrix(self.before)

    @property
    def p_value(self) -> float:
        """How probable a difference at least as large is where the models are equally good (see `mcnemar`)."""
        return mcnemar(len(self.fixed), len(self.broken))


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Set two evaluations of the same pictures beside each other.

    Raises:
        FailedPreconditionError: other pictures, or models with other classes.
    """
    if set(before.labels) != set(after.labels):
        mine, theirs = set(before.labels) - set(after.labels), set(after.labels) - set(before.labels)
        first = [f"the first alone knows {some(sorted(mine))}"] if mine else []
        second = [f"the second alone knows {some(sorted(theirs))}"] if theirs else []
        raise FailedPreconditionError(f"the models have other classes: {', '.join(first + second)}")
    if tuple(before.paths) != tuple(after.paths):
        raise FailedPreconditionError("the models were asked about other pictures")
    after = _in_order_of(before, after)
    was, now = before.predicted == before.targets, after.predicted == after.targets
    return Comparison(
        before=before,
        after=after,
        fixed=np.flatnonzero(~was & now),
        broken=np.flatnonzero(was & ~now),
        both_right=int((was & now).sum()),
        both_wrong=int((~was & ~now).sum()),
    )


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p-value of McNemar's test (1947) in its exact, binomial form; 1 where no picture changed sides."""
    changed, fewer = fixed + broken, min(fixed, broken)
    logs = [
        math.lgamma(changed + 1) - math.lgamma(i + 1) - math.lgamma(changed - i + 1) - changed * math.log(2)
        for i in range(fewer + 1)
    ]
    return min(1.0, 2.0 * math.fsum(math.exp(value) for value in logs))


def _in_order_of(before: Evaluation, after: Evaluation) -> Evaluation:
    """The second evaluation with the first one's order of classes."""
    index = {label: i for i, label in enumerate(after.labels)}
    columns = np.array([index[label] for label in before.labels], dtype=np.int64)
    targets = np.argsort(columns)[after.targets]
    return Evaluation(after.probabilities[:, columns], targets, after.paths, before.labels, after.root)
