"""Fixtures that every test may use. Imports nothing heavy: the kernel tests also run where only torch is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real pictures and pretrained weights (`PYSERVE_TEST_DATA`); required in CI."""
    folder = Path(os.environ.get("PYSERVE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "SOURCES.md").is_file():
        message = f"needs the test data: PYSERVE_TEST_DATA (now {folder}) holds no SOURCES.md"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
