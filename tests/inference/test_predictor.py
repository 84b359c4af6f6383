"""Predictors: pictures, tensors and batches are answered alike; bad ones are named."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyserve.data.images import decode_square
from pyserve.data.resampling import resize_with_torch
from pyserve.data.transforms import tta_views
from pyserve.errors import DataError, InvalidArgumentError
from pyserve.inference.bundle import load_bundle
from pyserve.inference.description import Preprocessing
from pyserve.inference.predictor import BATCH_TOLERANCE, Predictor, Probabilities
from pyserve.models import create_model
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


def answers(predictor: Predictor, pictures: list[bytes], *, tta: bool = False) -> Probabilities:
    rows = np.stack([predictor.decode(data) for data in pictures])
    return predictor.probabilities(torch.from_numpy(rows), tta=tta)


def tensor_answers(predictor: Predictor, array: np.ndarray[Any, Any], *, tta: bool = False) -> Probabilities:
    checked = np.ascontiguousarray(predictor.check_tensor(array))
    return predictor.probabilities(torch.from_numpy(checked), tta=tta)


def test_rows_add_up_and_the_likeliest_come_first(predictor: Predictor) -> None:
    probabilities = answers(predictor, [encoded(p) for p in pixels(5)])
    assert probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    rows = predictor.top(probabilities, 3)
    for row, values in zip(rows, probabilities, strict=True):
        assert [s.probability for s in row] == sorted(values.tolist(), reverse=True)
        assert [s.label for s in row] == [LABELS[s.index] for s in row]
        assert [s.probability for s in row] == [float(values[s.index]) for s in row]
    assert predictor.top(probabilities, 2) == [row[:2] for row in rows]
    assert predictor.top(probabilities, 99) == rows
    assert (predictor.name, predictor.labels) == ("models/pets/versions/1", LABELS)


def test_equally_likely_classes_keep_their_order(predictor: Predictor) -> None:
    rows = predictor.top(np.full((1, 3), 1 / 3, np.float32), 3)
    assert [s.index for s in rows[0]] == [0, 1, 2]


def test_bad_top_k(predictor: Predictor) -> None:
    with pytest.raises(InvalidArgumentError, match="top_k: got 0, expected ≥ 1"):
        predictor.top(np.full((1, 3), 1 / 3, np.float32), 0)


@pytest.mark.parametrize("count", [1, 7, 33])
def test_the_batch_does_not_change_the_answer(predictor: Predictor, count: int) -> None:
    pictures = [encoded(p) for p in pixels(count, 20, 24)]
    together = answers(predictor, pictures)
    alone = np.concatenate([answers(predictor, [p]) for p in pictures])
    assert (np.abs(together - alone) <= BATCH_TOLERANCE).all()


@pytest.mark.parametrize("tta", [False, True])
def test_tensors_in_both_layouts_and_types(predictor: Predictor, tta: bool) -> None:
    values = pixels(3)
    forms = [values, values.transpose(0, 3, 1, 2), (values / 255).astype(np.float32)]
    found = [tensor_answers(predictor, form, tta=tta) for form in forms]
    for other in found[1:]:
        assert (np.abs(other - found[0]) < 1e-4).all()
    assert found[0].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_pictures_are_decoded_as_training_decodes_them(predictor: Predictor) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, 90, 110)[0]).save(buffer, "JPEG")
    row = predictor.decode(buffer.getvalue())
    assert row.shape == (3, 18, 18)
    assert (row == decode_square(buffer.getvalue(), 18, max_pixels=10_000, resize=resize_with_torch)).all()


def test_a_square_of_three_is_read_as_channels_first(tmp_path: Path) -> None:
    saved(
        tmp_path,
        create_model("resnet20", len(LABELS)),
        architecture="resnet20",
        preprocessing=Preprocessing(image_size=3, presize=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        golden_inputs=torch.zeros(1, 3, 3, 3, dtype=torch.uint8),
    )
    predictor = Predictor(load_bundle(tmp_path), threads=1)
    array = np.arange(54, dtype=np.uint8).reshape(2, 3, 3, 3)
    assert (predictor.check_tensor(array) == array.transpose(0, 3, 1, 2)).all()


def test_no_picture_no_answer(predictor: Predictor) -> None:
    assert predictor.probabilities(torch.zeros(0, 3, 18, 18, dtype=torch.uint8)).shape == (0, 3)


@pytest.mark.parametrize("data", [b"", encoded(pixels(1)[0])[:-40], encoded(pixels(1, 101, 100)[0])])
def test_bad_pictures(predictor: Predictor, data: bytes) -> None:
    with pytest.raises(DataError, match=r"cannot be decoded|is not a picture|10000"):
        predictor.decode(data)


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
        predictor.check_tensor(array)


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
