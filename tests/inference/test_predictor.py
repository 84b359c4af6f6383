"""Predictors: pictures, tensors and batches are answered alike; bad ones are named; models come and go."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyserve.config import Settings
from pyserve.data.transforms import tta_views
from pyserve.errors import CancelledError, InvalidArgumentError, NotFoundError
from pyserve.inference.bundle import load_bundle
from pyserve.inference.model_store import ModelStore
from pyserve.inference.predictor import BATCH_TOLERANCE, Predictor, PredictorCache, Score
from tests.inference.test_bundle import LABELS, saved

SIDE = 16


def pixels(count: int, height: int = SIDE, width: int = SIDE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(2).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("bundle")
    saved(folder)
    return Predictor(load_bundle(folder, name="models/pets/versions/1"), threads=2, max_image_pixels=10_000)


def matrix(rows: Sequence[Sequence[Score]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probabilities [N, classes] in label order."""
    return np.array([[s.probability for s in sorted(row, key=lambda s: s.index)] for row in rows])


def test_scores_are_sorted_and_add_up(predictor: Predictor) -> None:
    rows = predictor.predict_encoded([encoded(p) for p in pixels(5)])
    for row in rows:
        assert [s.probability for s in row] == sorted((s.probability for s in row), reverse=True)
        assert sum(s.probability for s in row) == pytest.approx(1, abs=1e-5)
        assert [s.label for s in row] == [LABELS[s.index] for s in row]
    assert predictor.predict_encoded([encoded(p) for p in pixels(5)], 2) == [row[:2] for row in rows]
    assert (predictor.name, predictor.labels) == ("models/pets/versions/1", LABELS)


def test_equally_likely_classes_keep_their_order(predictor: Predictor) -> None:
    rows = predictor._top(np.full((1, 3), 1 / 3, np.float32), 3)
    assert [s.index for s in rows[0]] == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_the_batch_does_not_change_the_answer(predictor: Predictor, count: int) -> None:
    pictures = [encoded(p) for p in pixels(count, 20, 24)]
    together = matrix(predictor.predict_encoded(pictures, 3))
    alone = matrix([predictor.predict_encoded([p], 3)[0] for p in pictures])
    assert np.abs(together - alone).max() <= BATCH_TOLERANCE


@pytest.mark.parametrize("tta", [False, True])
def test_tensors_in_both_layouts_and_types(predictor: Predictor, tta: bool) -> None:
    values = pixels(3)
    forms = [values, values.transpose(0, 3, 1, 2), (values / 255).astype(np.float32)]
    answers = [matrix(predictor.predict_tensor(form, 3, tta)) for form in forms]
    for other in answers[1:]:
        assert np.abs(other - answers[0]).max() < 1e-4
    assert answers[0].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_square_of_three_is_read_as_channels_first(tmp_path: Path) -> None:
    from pyserve.inference.description import Preprocessing

    saved(
        tmp_path,
        preprocessing=Preprocessing(image_size=3, presize=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        golden_inputs=torch.zeros(1, 3, 3, 3, dtype=torch.uint8),
    )
    predictor = Predictor(load_bundle(tmp_path), threads=1)
    assert len(predictor.predict_tensor(np.zeros((2, 3, 3, 3), np.uint8))) == 2


def test_no_picture_no_answer(predictor: Predictor) -> None:
    assert predictor.predict_encoded([]) == []
    assert predictor.probabilities(torch.zeros(0, 3, 18, 18, dtype=torch.uint8)).shape == (0, 3)


def test_every_bad_picture_of_a_chunk_is_named(predictor: Predictor) -> None:
    pictures = [encoded(p) for p in pixels(5)]
    pictures[1], pictures[3] = b"", pictures[3][:-40]
    with pytest.raises(InvalidArgumentError) as info:
        predictor.predict_encoded(pictures, first_index=10)
    assert [v.field for v in info.value.fields] == ["images.data[11]", "images.data[13]"]
    with pytest.raises(InvalidArgumentError, match=r"images\.data\[0\]: .*10000"):
        predictor.predict_encoded([encoded(pixels(1, 101, 100)[0])])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), r"tensor\.shape: got \[1, 8, 8, 3\], expected \[N, 3, 16, 16\]"),
        (np.zeros((SIDE, SIDE, 3), np.uint8), r"tensor\.shape"),
        (np.zeros((1, SIDE, SIDE, 3), np.float64), r"tensor\.dtype: got 'float64'"),
        (np.full((1, SIDE, SIDE, 3), 255, np.float32), r"tensor\.data: got 'values from 255 to 255'"),
        (np.full((1, SIDE, SIDE, 3), np.nan, np.float32), r"tensor\.data"),
    ],
)
def test_bad_tensors(predictor: Predictor, array: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        predictor.predict_tensor(array)


def test_bad_top_k(predictor: Predictor) -> None:
    with pytest.raises(InvalidArgumentError, match="top_k: got 0, expected ≥ 1"):
        predictor.predict_encoded([encoded(pixels(1)[0])], 0)


def test_stopping_between_chunks(predictor: Predictor) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    with pytest.raises(CancelledError, match="stopped after 32 of 70 pictures"):
        predictor.predict_encoded([encoded(p) for p in pixels(70)], should_stop=stop)


def test_many_threads_get_their_own_answers(predictor: Predictor) -> None:
    pictures = [encoded(p) for p in pixels(24)]
    alone = [predictor.predict_encoded([p])[0] for p in pictures]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda p: predictor.predict_encoded([p])[0], pictures * 4))
    assert answers == alone * 4


def store_of(folder: Path, names: Sequence[str]) -> ModelStore:
    store = ModelStore(folder)
    for name in names:
        store.add(name, lambda staging: saved(staging) and None)
    return store


def test_the_least_recently_used_model_leaves(tmp_path: Path) -> None:
    cache = PredictorCache(
        store_of(tmp_path, ["a", "b", "c"]), Settings(max_loaded_models=2, predict_threads=1), "cpu"
    )
    first = cache.get("models/a")
    cache.get("models/b")
    assert cache.get("models/a/versions/1") is first
    cache.get("models/c")
    assert list(cache.loaded()) == ["models/a/versions/1", "models/c/versions/1"]
    assert len(first.predict_encoded([encoded(pixels(1)[0])])) == 1


def test_the_newest_version_answers(tmp_path: Path) -> None:
    store = store_of(tmp_path, ["a"])
    cache = PredictorCache(store, Settings(predict_threads=1), "cpu")
    assert cache.get("models/a").name == "models/a/versions/1"
    store.add("a", lambda staging: saved(staging) and None)
    assert cache.get("models/a").name == "models/a/versions/2"
    with pytest.raises(NotFoundError):
        cache.get("models/z")


@pytest.mark.parametrize("tta", [False, True])
def test_probabilities_are_those_of_the_logits_over_the_temperature(tmp_path: Path, tta: bool) -> None:
    saved(tmp_path)
    bundle = load_bundle(tmp_path)
    warmer = dataclasses.replace(bundle, description=bundle.description.model_copy(update={"temperature": 2.0}))
    batch = torch.from_numpy(pixels(3, 18, 18)).permute(0, 3, 1, 2)
    views = [bundle.normalize(view) for view in tta_views(batch, SIDE)] if tta else [bundle.prepare(batch)]
    with torch.inference_mode():
        each = [np.exp(bundle.model(view).double().numpy() / 2) for view in views]
    expected = np.mean([e / e.sum(axis=1, keepdims=True) for e in each], axis=0)
    got = Predictor(warmer, threads=1).probabilities(batch, tta=tta)
    assert np.abs(got - expected).max() < 1e-6
    assert np.abs(Predictor(bundle, threads=1).probabilities(batch, tta=tta) - expected).max() > 1e-3
