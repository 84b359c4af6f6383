from __future__ import annotations

import pytest

from pyserve.models.registry import architectures
from pyserve.ui.dataset import ARCHITECTURES
from pyserve.ui.frame import percent


def test_every_architecture_may_be_chosen() -> None:
    assert sorted(ARCHITECTURES) == sorted(architectures())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 %"),
        (0.0004, "< 0.1 %"),
        (0.0005, "0.1 %"),
        (0.973, "97.3 %"),
        (0.9994, "99.9 %"),
        (0.9999, "> 99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_only_none_and_all_are_told_as_such(value: float, text: str) -> None:
    assert percent(value) == text
