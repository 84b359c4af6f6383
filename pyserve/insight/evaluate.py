"""A model's answers on a part of a data set, and a cache of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pyserve.data.tensors import load_part
from pyserve.errors import CancelledError, FailedPreconditionError
from pyserve.insight.predictions import Evaluation, some
from pyserve.insight.shared import SharedResults

if TYPE_CHECKING:
    from pyserve.data.manifest import Manifest
    from pyserve.inference.predictor import Predictor

Part = Literal["train", "valid"]
_BATCH_IMAGES = 64


def evaluate(
    predictor: Predictor,
    manifest: Manifest,
    part: Part,
    cache_dir: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Ask the model about every picture of a part; decoded pictures are shared with trainings at the same presize.

    Args:
        manifest: its classes may be fewer than the model's, and in another order, but none that the model lacks.
        cache_dir: where decoded pictures are kept.
        should_stop: asked between batches; True ends the work.

    Raises:
        FailedPreconditionError: the part is empty, or has classes that the model does not know.
        CancelledError: `should_stop` said so.
    """
    to_model = _label_map(manifest, predictor)
    if not manifest.part_items(part):
        raise FailedPreconditionError(f"datasets/{manifest.dataset_id} has no pictures in its {part} part")
    presize = predictor.bundle.preprocessing.presize

    def progress(done: int, total: int) -> None:
        _ask(should_stop, done, total)

    data = load_part(manifest, part, presize, cache_dir, threads=predictor.threads, progress=progress)
    rows = []
    for begin in range(0, len(data.labels), _BATCH_IMAGES):
        _ask(should_stop, begin, len(data.labels))
        rows.append(predictor.log_probabilities(data.images[begin : begin + _BATCH_IMAGES]))
    logs = np.concatenate(rows)
    return Evaluation(
        probabilities=np.exp(logs),
        targets=to_model[data.labels.numpy()],
        paths=tuple(item.path for item in data.items),
        labels=predictor.labels,
        root=manifest.root,
        exact_logs=logs,
    )


class EvaluationCache:
    """The latest evaluations in memory, by (model version, digest of the data, part); each is made once.

    Args:
        capacity: most evaluations kept; one takes 4 bytes per picture and class.
    """

    def __init__(self, capacity: int = 8) -> None:
        self._results: SharedResults[tuple[str, str, str], Evaluation] = SharedResults(capacity)

    def get(
        self,
        predictor: Predictor,
        manifest: Manifest,
        part: Part,
        cache_dir: Path,
        should_stop: Callable[[], bool] | None = None,
    ) -> Evaluation:
        """The evaluation; raises what `evaluate` raises and then keeps nothing."""
        key = (predictor.name, manifest.digest, part)
        return self._results.get(
            key,
            lambda: evaluate(predictor, manifest, part, cache_dir, should_stop=should_stop),
            should_stop,
        )


def _label_map(manifest: Manifest, predictor: Predictor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Index of each of the data set's classes among the model's labels."""
    index = {label: i for i, label in enumerate(predictor.labels)}
    unknown = [name for name in manifest.classes if name not in index]
    if unknown:
        raise FailedPreconditionError(
            f"{predictor.name} does not know {some(unknown)} of datasets/{manifest.dataset_id}; "
            f"it knows {some(predictor.labels)}"
        )
    return np.array([index[name] for name in manifest.classes], dtype=np.int64)


def _ask(should_stop: Callable[[], bool] | None, done: int, total: int) -> None:
    if should_stop is not None and should_stop():
        raise CancelledError(f"the evaluation was stopped after {done} of {total} pictures")
