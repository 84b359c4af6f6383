"""Recorded passes: the sizes that are recorded, and, on a GPU, that they answer as the network itself does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pyserve.errors import InvalidArgumentError
from pyserve.inference.bundle import load_bundle
from pyserve.inference.cuda_graphs import bucket, bucket_sizes
from pyserve.inference.predictor import Predictor
from tests.inference.test_bundle import golden, saved


def test_sizes_double_up_to_the_largest_batch() -> None:
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(8) == (1, 2, 4, 8)
    assert bucket_sizes(12) == (1, 2, 4, 8, 12)


@pytest.mark.parametrize("largest", [1, 2, 7, 8, 9, 32, 33])
def test_every_batch_has_a_size_that_is_at_most_twice_its_own(largest: int) -> None:
    sizes = bucket_sizes(largest)
    assert list(sizes) == sorted(set(sizes))
    for count in range(1, largest + 1):
        assert count <= bucket(sizes, count) < max(2 * count, 2)
    with pytest.raises(InvalidArgumentError, match="expected at most"):
        bucket(sizes, largest + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_passes_answer_as_the_network_does(tmp_path: Path) -> None:
    saved(tmp_path)
    plain = Predictor(load_bundle(tmp_path, "cuda"))
    recorded = Predictor(load_bundle(tmp_path, "cuda"), max_batch_size=8)
    pictures = golden(8)
    expected = plain.probabilities(pictures)
    for count in range(1, 9):
        assert (np.abs(recorded.probabilities(pictures[:count]) - expected[:count]) < 1e-4).all()
    assert (
        np.abs(recorded.probabilities(pictures, tta=True) - plain.probabilities(pictures, tta=True)) < 1e-4
    ).all()
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda i: recorded.probabilities(pictures[i : i + 1]), list(range(8)) * 20):
            assert (np.abs(expected - answer).max(axis=1) < 1e-4).any()
