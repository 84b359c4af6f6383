"""What a model answered about pictures whose labels are known: orders of top losses, confusions. Pure numpy.

To add an order: a function decorated with `@order(name)`; calls, command line and tests enumerate `ORDERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pyserve.errors import InvalidArgumentError

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.integer]
# (log-probabilities [N, C], targets [N]) → which pictures, most striking first
Order = Callable[[Floats, Indices], Indices]
ORDERS: dict[str, Order] = {}

# Probabilities are float32: one that rounds to zero counts as this, a loss of 87.3 nats.
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on a part of a data set.

    `probabilities` is float32 [N, C] in the order of `labels`, `targets` int64 [N] the labels' indices, `paths`
    the pictures relative to `root`; `exact_logs` are the probabilities' logarithms, where they are known better
    than from these.
    """

    probabilities: Floats
    targets: Indices
    paths: Sequence[str]
    labels: Sequence[str]
    root: str = ""
    exact_logs: Floats | None = None

    def __post_init__(self) -> None:
        n, classes = self.probabilities.shape
        if self.targets.shape != (n,) or len(self.paths) != n or classes != len(self.labels):
            raise InvalidArgumentError(
                f"evaluation: got {n} rows of {classes} probabilities, {len(self.targets)} targets, "
                f"{len(self.paths)} paths and {len(self.labels)} labels; expected as many of each"
            )

    @cached_property
    def predicted(self) -> Indices:
        """Index of the likeliest class [N]."""
        result: Indices = self.probabilities.argmax(axis=1)
        return result

    @cached_property
    def log_probabilities(self) -> Floats:
        """Natural logarithms of the probabilities, finite, float64 [N, C]."""
        if self.exact_logs is not None:
            return self.exact_logs.astype(np.float64)
        logs: Floats = np.log(np.maximum(self.probabilities.astype(np.float64), _SMALLEST))
        return logs

    @cached_property
    def losses(self) -> Floats:
        """Cross-entropy of each picture, nats, float64 [N]."""
        return losses(self.log_probabilities, self.targets)

    @property
    def accuracy(self) -> float:
        """0…1; NaN where there are no pictures."""
        return float((self.predicted == self.targets).mean()) if len(self.targets) else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats; NaN where there are no pictures."""
        return float(self.losses.mean()) if len(self.targets) else float("nan")


@dataclass(frozen=True)
class ImageLoss:
    """What the model said about one picture."""

    path: str
    label: str
    predicted: str
    probability: float  # of the predicted label
    label_probability: float  # of the data set's label
    loss: float  # nats

    @property
    def correct(self) -> bool:
        """Whether the model gave the data set's label."""
        return self.label == self.predicted


@dataclass(frozen=True)
class ConfusedPair:
    """How often pictures of one class were taken for another."""

    label: str
    predicted: str
    count: int


def losses(logs: Floats, targets: Indices) -> Floats:
    """Cross-entropy of each picture from log-probabilities [N, C], nats, [N]."""
    result: Floats = -logs[np.arange(len(targets)), targets]
    return result


def order(name: str) -> Callable[[Order], Order]:
    """Enter a function into `ORDERS`."""

    def enter(function: Order) -> Order:
        ORDERS[name] = function
        return function

    return enter


@order("most_incorrect")
def most_incorrect(logs: Floats, targets: Indices) -> Indices:
    """Those wrongly labelled, the most confident first."""
    predicted = logs.argmax(axis=1)
    return _descending(logs.max(axis=1), np.flatnonzero(predicted != targets))


@order("most_correct")
def most_correct(logs: Floats, targets: Indices) -> Indices:
    """Those rightly labelled, the most confident first."""
    predicted = logs.argmax(axis=1)
    return _descending(logs.max(axis=1), np.flatnonzero(predicted == targets))


@order("most_uncertain")
def most_uncertain(logs: Floats, targets: Indices) -> Indices:
    """All, first those whose highest probability is closest to that of the runner-up."""
    if logs.shape[1] < 2:
        return np.arange(len(targets))
    best = np.exp(np.partition(logs, -2, axis=1))
    return _descending(best[:, -2] - best[:, -1], np.arange(len(targets)))


@order("highest_loss")
def highest_loss(logs: Floats, targets: Indices) -> Indices:
    """All, right or wrong, the highest cross-entropy first."""
    return _descending(losses(logs, targets), np.arange(len(targets)))


def top_losses(
    evaluation: Evaluation,
    order: str = "most_incorrect",
    count: int = 9,
    *,
    label: str = "",
    predicted: str = "",
) -> list[ImageLoss]:
    """The pictures that stand out, most striking first; fewer than `count` where there are no more.

    Args:
        label: only pictures with this label in the data set; "" means all.
        predicted: only pictures that the model gives this label; with `label`, a cell of the confusion matrix.

    Raises:
        InvalidArgumentError: an unknown order or class, or a count below 1.
    """
    if order not in ORDERS:
        raise InvalidArgumentError.field("order", order, f"one of {', '.join(ORDERS)}")
    if count < 1:
        raise InvalidArgumentError.field("count", count, "≥ 1")
    wanted = np.ones(len(evaluation.targets), bool)
    if label:
        wanted &= evaluation.targets == class_index(evaluation.labels, label, "label")
    if predicted:
        wanted &= evaluation.predicted == class_index(evaluation.labels, predicted, "predicted")
    if not wanted.any():
        return []
    chosen = ORDERS[order](evaluation.log_probabilities, evaluation.targets)
    return [_image_loss(evaluation, int(i)) for i in chosen[wanted[chosen]][:count]]


def class_index(labels: Sequence[str], label: str, field: str) -> int:
    """Index of a class.

    Raises:
        InvalidArgumentError: there is none of that name; names those there are.
    """
    if label not in labels:
        raise InvalidArgumentError.field(field, label, f"one of {some(labels)}")
    return list(labels).index(label)


def some(names: Sequence[str], limit: int = 10) -> str:
    """Names for a sentence, the first ones of many."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def confusion_matrix(evaluation: Evaluation) -> npt.NDArray[np.int64]:
    """int64 [C, C]: element [i, j] counts the pictures of class i that were taken for class j."""
    classes = len(evaluation.labels)
    flat = evaluation.targets * classes + evaluation.predicted
    counts: npt.NDArray[np.int64] = np.bincount(flat, minlength=classes**2).reshape(classes, classes)
    return counts


def most_confused(counts: npt.NDArray[np.integer], labels: Sequence[str], count: int = 10) -> list[ConfusedPair]:
    """The most frequent confusions of a confusion matrix, of equally frequent ones first by class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    flat = wrong.ravel()
    chosen = _descending(flat, np.flatnonzero(flat))[:count]
    rows, columns = np.divmod(chosen, len(labels))
    return [ConfusedPair(labels[i], labels[j], int(counts[i, j])) for i, j in zip(rows, columns, strict=True)]


def _descending(keys: npt.NDArray[np.number], indices: Indices) -> Indices:
    """Those indices by their keys, highest first; of equal ones the lower index first."""
    result: Indices = indices[np.argsort(-keys[indices].astype(np.float64), kind="stable")]
    return result


def _image_loss(evaluation: Evaluation, i: int) -> ImageLoss:
    row, target, predicted = evaluation.probabilities[i], evaluation.targets[i], evaluation.predicted[i]
    return ImageLoss(
        path=evaluation.paths[i],
        label=evaluation.labels[target],
        predicted=evaluation.labels[predicted],
        probability=float(row[predicted]),
        label_probability=float(row[target]),
        loss=float(evaluation.losses[i]),
    )
