"""Neighbours against a search over all pairs; planted wrong labels and planted copies come first."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pyserve.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from pyserve.insight.duplicates import correlations, duplicates, usual_threshold
from pyserve.insight.labels import LabelIssue, label_issues, neighbour_count
from pyserve.insight.neighbours import Neighbours, nearest


def clusters(per_class: int = 40, classes: int = 3, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Features about one direction for each class, and the classes."""
    rng = np.random.default_rng(1)
    targets = np.repeat(np.arange(classes), per_class)
    return np.eye(classes, 8)[targets] + spread * rng.normal(size=(len(targets), 8)) / np.sqrt(8), targets


@pytest.mark.parametrize("count", [1, 5, 99, 500])
def test_nearest_is_what_a_search_over_all_pairs_finds(count: int) -> None:
    features = np.random.default_rng(0).normal(size=(100, 7))
    found = nearest(features, count)
    wanted = min(count, 99)
    assert found.index.shape == (100, wanted)
    for i in range(100):
        cosine = [
            -np.inf
            if j == i
            else features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
            for j in range(100)
        ]
        assert found.index[i].tolist() == np.argsort(-np.array(cosine), kind="stable")[:wanted].tolist()
        assert found.similarity[i] == pytest.approx(np.sort(cosine)[::-1][:wanted], abs=1e-5)


def test_a_picture_without_features_has_neighbours_all_the_same() -> None:
    features = np.random.default_rng(0).normal(size=(5, 3))
    features[2] = 0
    assert np.isfinite(nearest(features, 2).similarity).all()


def test_planted_wrong_labels_come_first() -> None:
    features, right = clusters()
    planted = {3: 1, 50: 2, 100: 0, 119: 1}
    targets = right.copy()
    targets[list(planted)] = list(planted.values())
    issues = label_issues(nearest(features, neighbour_count(120, 3)), targets, 3)
    assert {i.picture for i in issues[:4]} == set(planted)
    assert all(i.suggested == right[i.picture] and i.confident for i in issues[:4])
    scores = [i.suggested_share - i.label_share for i in issues]
    assert scores == sorted(scores, reverse=True)


def test_right_labels_are_not_suspected() -> None:
    features, targets = clusters()
    assert label_issues(nearest(features, 10), targets, 3) == []


def test_votes_by_hand() -> None:
    """One picture with three neighbours at similarities 1, 1 and 0.93: weights 1, 1 and 1/e."""
    index = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [2, 1, 0]])
    similarity = np.array([[1, 1, 0.93]] * 4, np.float32)
    issues = label_issues(Neighbours(index, similarity), np.array([0, 1, 1, 0]), 2)
    weight = np.exp(-1)
    first = next(i for i in issues if i.picture == 0)
    assert first.suggested == 1
    assert first.suggested_share == pytest.approx(2 / (2 + weight), rel=1e-4)
    assert first.label_share == pytest.approx(weight / (2 + weight), rel=1e-4)
    assert first.score == pytest.approx((2 - weight) / (2 + weight), rel=1e-4)
    # class 1's own pictures, 1 and 2, get one vote of their class each: 1 / (2 + 1/e), which 2 / (2 + 1/e) exceeds
    assert first == LabelIssue(0, 1, first.label_share, first.suggested_share, confident=True)


def test_classes_that_nobody_has_are_not_suggested() -> None:
    features, targets = clusters()
    targets[0] = 4
    (issue,) = label_issues(nearest(features, 10), targets, 9)
    assert (issue.picture, issue.suggested) == (0, 0)


def test_one_class_one_picture_and_stopping() -> None:
    features, targets = clusters()
    with pytest.raises(FailedPreconditionError, match="one class"):
        label_issues(nearest(features, 3), np.zeros(len(targets), np.int64), 3)
    with pytest.raises(FailedPreconditionError, match="got 1 picture"):
        nearest(features[:1], 3)
    with pytest.raises(CancelledError, match="stopped after 0 of 120"):
        nearest(features, 3, should_stop=lambda: True)
    assert [neighbour_count(n, 10) for n in (5, 100, 10_000)] == [1, 9, 30]


# ------------------------------------------------------------ copies


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture with structure at every scale, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cells in (4, 8, 16, 32, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), np.float64) / cells
    total -= total.min()
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("L").resize((32, 32), Image.Resampling.BOX))


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    return Image.open(buffer)


COPIES = {
    "recompressed": recompressed,
    "half the size": lambda image: image.resize((80, 60)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": lambda image: image.crop((8, 6, 152, 114)),
    "cropped at a corner": lambda image: image.crop((0, 0, 148, 111)),
    "cropped to 80 %": lambda image: image.crop((16, 12, 144, 108)),
    "brighter": lambda image: image.point(lambda v: min(255, int(1.3 * v))),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_others_are_not(kind: str) -> None:
    """The features say that all pictures are alike; the pixels say which are the same."""
    originals = [photo(seed) for seed in range(8)]
    thumbnails = np.stack([thumbnail(p) for p in [*originals, COPIES[kind](originals[5])]])
    found = duplicates(nearest(np.ones((9, 4)), 8), thumbnails).pairs
    same = duplicates(Neighbours(np.array([[8]] * 8 + [[5]]), np.ones((9, 1), np.float32)), thumbnails).pairs
    assert [(d.first, d.second) for d in found if d.second == 8] in ([(5, 8)], [])  # 5 nearest only are candidates
    assert [(d.first, d.second) for d in same] == [(5, 8)]
    assert same[0].correlation > 0.75


def test_correlation_of_the_same_of_its_negative_and_of_plain_pictures() -> None:
    picture = torch.from_numpy(thumbnail(photo(1))).float()[None]
    assert correlations(picture, picture).item() == pytest.approx(1, abs=1e-4)
    assert correlations(picture, 255 - picture).item() < 0.5
    flat = torch.full_like(picture, 90)
    assert correlations(picture, flat).item() == pytest.approx(0, abs=1e-3)
    assert correlations(flat, flat).item() == pytest.approx(0, abs=1e-3)


def test_correlation_against_a_sum_over_pixels() -> None:
    """Without crops and mirroring that fit better: a shift by (2, −1)."""
    wide = np.asarray(photo(2).convert("L").resize((40, 40), Image.Resampling.BOX), np.float64)
    a, b = wide[4:36, 4:36], wide[6:38, 3:35]
    got = correlations(*(torch.from_numpy(v.astype(np.float32))[None] for v in (a, b))).item()

    def details(v: np.ndarray) -> np.ndarray:
        padded = np.pad(v, 3, mode="reflect")
        return v - np.array([[padded[y : y + 7, x : x + 7].mean() for x in range(32)] for y in range(32)])

    centre, window = details(b)[3:29, 3:29], details(a)[5:31, 2:28]
    expected = np.corrcoef(centre.ravel(), window.ravel())[0, 1]
    assert expected > 0.9
    assert got == pytest.approx(expected, abs=1e-3)


def test_the_threshold_rises_where_all_pictures_are_alike() -> None:
    """Photographs: neighbours at about 0.25, with a small deviation in Fisher's z; digits: 0.8, a large one."""
    rng = np.random.default_rng(0)
    photographs, digits = (np.tanh(rng.normal(np.arctanh(m), s, 5000)) for m, s in ((0.25, 0.08), (0.8, 0.25)))
    assert usual_threshold(photographs) == 0.7
    assert usual_threshold(digits) == pytest.approx(np.tanh(np.arctanh(0.8) + 5 * 0.25), abs=0.01)
    assert usual_threshold(np.ones(10)) == 0.99
    assert usual_threshold(np.array([])) == 0.7


def test_bad_correlation_and_stopping() -> None:
    thumbnails = np.stack([thumbnail(photo(seed)) for seed in range(3)])
    neighbours = nearest(np.ones((3, 2)), 2)
    with pytest.raises(InvalidArgumentError, match="least_correlation: got 2, expected -1 to 1"):
        duplicates(neighbours, thumbnails, 2)
    with pytest.raises(CancelledError, match="stopped after 0 of 3 pairs"):
        duplicates(neighbours, thumbnails, should_stop=lambda: True)
