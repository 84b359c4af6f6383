"""Labels that are probably wrong: pictures whose neighbours in feature space have another one. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyserve.errors import FailedPreconditionError
from pyserve.insight.neighbours import Neighbours
from pyserve.insight.predictions import Indices

MOST_NEIGHBOURS = 30
# Weight of a neighbour is exp(similarity / this), as in Wu et al. 2018 (arXiv 1805.01978).
_VOTE_TEMPERATURE = 0.07


@dataclass(frozen=True)
class LabelIssue:
    """A picture whose neighbours have another label."""

    picture: int
    suggested: int  # class
    label_share: float  # votes of the neighbours for the label it has, 0…1
    suggested_share: float  # and for the suggested one
    confident: bool  # the suggestion has as many votes as that class's own pictures have on average

    @property
    def score(self) -> float:
        """How much the neighbours prefer the suggestion, 0…1."""
        return self.suggested_share - self.label_share


def label_issues(neighbours: Neighbours, targets: Indices, classes: int) -> list[LabelIssue]:
    """Pictures that probably have a wrong label, the most striking first.

    Each picture's neighbours vote for its class, nearer ones with more weight (weighted k-NN, Wu et al. 2018); no
    picture votes for itself, so the votes are held-out predictions as confident learning wants them (Northcutt et
    al. 2021, arXiv 1911.00068). Suspected are pictures whose neighbours prefer another class to the label; first
    come those where the votes differ most. A suggestion is confident where it reaches that paper's threshold: the
    mean vote for a class among the pictures that have its label.

    Args:
        neighbours: of N pictures; `neighbour_count` says how many are wanted.
        targets: [N] the classes that they have.
        classes: how many there are.

    Raises:
        FailedPreconditionError: all pictures have one class.
    """
    present = np.unique(targets)
    if len(present) < 2:
        raise FailedPreconditionError("label issues: all pictures have one class, expected two or more")
    rows = np.arange(len(targets))
    votes = _votes(neighbours, targets, classes)
    own = votes[rows, targets]
    others = votes.copy()
    others[rows, targets] = -np.inf
    suggested = others.argmax(axis=1)
    best = others[rows, suggested]
    thresholds = np.full(classes, np.inf)
    for c in present:
        thresholds[c] = own[targets == c].mean()
    suspects = np.flatnonzero(best > own)
    suspects = suspects[np.argsort((own - best)[suspects], kind="stable")]
    confident = best >= thresholds[suggested]
    return [
        LabelIssue(int(i), int(suggested[i]), float(own[i]), float(best[i]), bool(confident[i])) for i in suspects
    ]


def neighbour_count(pictures: int, classes: int) -> int:
    """How many neighbours are asked: 30, or fewer where the classes are smaller than that on average."""
    return max(1, min(MOST_NEIGHBOURS, pictures // max(classes, 1) - 1))


def _votes(neighbours: Neighbours, targets: Indices, classes: int) -> npt.NDArray[np.float64]:
    """Share of the neighbours' weights that each class gets, [N, classes]."""
    similarity = neighbours.similarity.astype(np.float64)
    weights = np.exp((similarity - similarity[:, :1]) / _VOTE_TEMPERATURE)
    pictures = len(neighbours.index)
    cells = np.arange(pictures)[:, None] * classes + targets[neighbours.index]
    sums = np.bincount(cells.ravel(), weights.ravel(), minlength=pictures * classes).reshape(pictures, classes)
    result: npt.NDArray[np.float64] = sums / weights.sum(axis=1, keepdims=True)
    return result
