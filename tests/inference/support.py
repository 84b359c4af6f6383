"""A valid bundle description without a model behind it, for tests that need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyserve.inference.description import (
    DESCRIPTION_FILE,
    GOLDEN_FILE,
    WEIGHTS_FILE,
    Description,
    FileRecord,
    Preprocessing,
)


def describe(**changes: Any) -> Description:
    """A description with some fields changed."""
    record = FileRecord(size_bytes=3, sha256="0" * 64)
    fields: dict[str, Any] = {
        "architecture": "smallnet",
        "labels": ("cat", "dog"),
        "preprocessing": Preprocessing(image_size=16, presize=18, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        "metrics": {"accuracy": 0.5},
        "provenance": {"dataset": "datasets/pets"},
        "parameter_count": 10,
        "create_time": 1000.0,
        "files": {WEIGHTS_FILE: record, GOLDEN_FILE: record},
    }
    return Description(**(fields | changes))


def write_description(folder: Path, **changes: Any) -> None:
    """Write files that the store takes for a bundle."""
    for file in (WEIGHTS_FILE, GOLDEN_FILE):
        (folder / file).write_bytes(b"abc")
    (folder / DESCRIPTION_FILE).write_text(describe(**changes).model_dump_json())
