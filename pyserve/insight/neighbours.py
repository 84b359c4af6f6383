"""Pictures that lie next to each other in a network's feature space (`insight.embedding`). Pure numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyserve.errors import CancelledError, FailedPreconditionError
from pyserve.insight.predictions import Floats, Indices

_BLOCK = 1024  # rows of the similarity matrix at once

ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Neighbours:
    """The nearest other pictures of each picture, nearest first."""

    index: Indices  # int64 [N, k]
    similarity: npt.NDArray[np.float32]  # cosine of the features [N, k]


def nearest(features: Floats, count: int, should_stop: ShouldStop | None = None) -> Neighbours:
    """The nearest other pictures by cosine similarity, exactly.

    Args:
        features: [N, D].
        count: neighbours of each; where there are fewer pictures, all others.
        should_stop: asked now and then; True ends the work.

    Raises:
        FailedPreconditionError: fewer than two pictures.
        CancelledError: `should_stop` said so.
    """
    pictures = len(features)
    if pictures < 2:
        raise FailedPreconditionError(f"neighbours: got {pictures} pictures, expected 2 or more")
    count = min(count, pictures - 1)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    index, similarity = np.empty((pictures, count), np.int64), np.empty((pictures, count), np.float32)
    for begin in range(0, pictures, _BLOCK):
        if should_stop is not None and should_stop():
            raise CancelledError(f"the search for neighbours was stopped after {begin} of {pictures} pictures")
        rows = slice(begin, min(begin + _BLOCK, pictures))
        block = unit[rows] @ unit.T
        block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = -np.inf  # not itself
        near = np.argpartition(-block, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(block, near, axis=1)
        order = np.lexsort((near, -values), axis=1)
        index[rows], similarity[rows] = np.take_along_axis(near, order, 1), np.take_along_axis(values, order, 1)
    return Neighbours(index, similarity)
