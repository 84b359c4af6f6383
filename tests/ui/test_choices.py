from __future__ import annotations

from pyserve.models.registry import architectures
from pyserve.ui.dataset import ARCHITECTURES


def test_every_architecture_may_be_chosen() -> None:
    assert sorted(ARCHITECTURES) == sorted(architectures())
