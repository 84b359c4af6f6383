from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserve.data.split import draw_valid
from pyserve.errors import DataError

FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**31 - 1)


def distinct(count: int) -> dict[str, str]:
    """Path → content, no two alike."""
    return {f"cat/{index}.png": f"{index:064x}" for index in range(count)}


def draw(pictures: dict[str, str], fraction: float = 0.2, seed: int = 0) -> frozenset[str]:
    return draw_valid(pictures, fraction=fraction, seed=seed, name="cat")


@given(st.integers(2, 200), FRACTIONS, SEEDS)
def test_the_fraction_is_the_nearest_that_leaves_both_parts_a_picture(
    count: int, fraction: float, seed: int
) -> None:
    valid = draw(distinct(count), fraction, seed)
    assert valid <= set(distinct(count))
    assert 1 <= len(valid) <= count - 1
    nearest = min(range(1, count), key=lambda n: abs(n - fraction * count))
    assert abs(len(valid) - fraction * count) <= abs(nearest - fraction * count) + 1e-9


@given(st.integers(2, 60), FRACTIONS, SEEDS, st.randoms())
def test_it_depends_on_paths_and_seed_alone(count: int, fraction: float, seed: int, random: object) -> None:
    pictures = list(distinct(count).items())
    expected = draw(dict(pictures), fraction, seed)
    random.shuffle(pictures)  # type: ignore[attr-defined]
    assert draw(dict(pictures), fraction, seed) == expected


@given(st.lists(st.integers(0, 10), min_size=2, max_size=60), FRACTIONS, SEEDS)
def test_copies_stay_together(contents: list[int], fraction: float, seed: int) -> None:
    pictures = {f"cat/{index}.png": f"{content:064x}" for index, content in enumerate(contents)}
    if len(set(contents)) < 2:
        with pytest.raises(DataError, match="'cat' is too small to split: got 1 different picture, expected 2"):
            draw(pictures, fraction, seed)
        return
    valid = draw(pictures, fraction, seed)
    measured = {pictures[path] for path in valid}
    learnt = {pictures[path] for path in pictures.keys() - valid}
    assert measured
    assert learnt
    assert not measured & learnt


def test_seeds_draw_differently_and_evenly() -> None:
    draws = [draw(distinct(20), seed=seed) for seed in range(500)]
    assert len(set(draws)) > 450
    times = [sum(path in drawn for drawn in draws) for path in distinct(20)]
    assert all(60 < count < 140 for count in times)  # 100 expected, 9 the standard deviation


def test_another_picture_moves_few_of_the_others() -> None:
    before, after = draw(distinct(100)), draw(distinct(101))
    assert len(before ^ after) <= 3


def test_a_class_of_one_picture() -> None:
    with pytest.raises(DataError, match="class 'cat' is too small to split: got 1 picture, expected 2 or more"):
        draw(distinct(1))
