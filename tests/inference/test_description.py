"""`bundle.json` is read strictly, and what is wrong with it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyserve.errors import DataLossError, FailedPreconditionError
from pyserve.inference.description import (
    DESCRIPTION_FILE,
    GOLDEN_FILE,
    WEIGHTS_FILE,
    derive_bundle,
    read_description,
)
from tests.inference.support import describe, write_description


def test_round_trip(tmp_path: Path) -> None:
    write_description(tmp_path)
    description = read_description(tmp_path, "models/pets")
    assert description == describe()
    assert description.size_bytes == 6


DAMAGE: dict[str, dict[str, Any]] = {
    "format": {"format": "zip"},
    "architecture": {"architecture": ""},
    "labels": {"labels": ["cat", "cat"]},
    "preprocessing.std": {"preprocessing": {"image_size": 8, "presize": 8, "mean": [0, 0, 0], "std": [1, 0, 1]}},
    "preprocessing": {"preprocessing": {"image_size": 9, "presize": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}},
    "metrics.loss": {"metrics": {"loss": "low"}},
    "parameter_count": {"parameter_count": -1},
    "temperature": {"temperature": 0},
    "files": {"files": {WEIGHTS_FILE: {"size_bytes": 3, "sha256": "0" * 64}}},
    f"files.{GOLDEN_FILE}.sha256": {
        "files": {
            WEIGHTS_FILE: {"size_bytes": 3, "sha256": "0" * 64},
            GOLDEN_FILE: {"size_bytes": 3, "sha256": "g"},
        }
    },
    "pickle": {"pickle": "surprise"},
}


@pytest.mark.parametrize("field", DAMAGE)
def test_damaged_fields_are_named(tmp_path: Path, field: str) -> None:
    values = json.loads(describe().model_dump_json()) | DAMAGE[field]
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps(values))
    with pytest.raises(DataLossError) as info:
        read_description(tmp_path, "models/pets")
    assert info.value.message.startswith(f"models/pets: bundle.json is damaged: {field}: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 1}'])
def test_what_is_no_description_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DESCRIPTION_FILE).write_bytes(content)
    with pytest.raises(DataLossError, match=r"^models/pets: bundle\.json is damaged: "):
        read_description(tmp_path, "models/pets")


def test_missing_description(tmp_path: Path) -> None:
    with pytest.raises(DataLossError, match="cannot be read: No such file") as info:
        read_description(tmp_path, "models/pets")
    assert str(tmp_path) not in info.value.message


@pytest.mark.parametrize("extra", [{}, {"novelty": 1}])
def test_a_later_format_asks_for_an_update(tmp_path: Path, extra: dict[str, Any]) -> None:
    values = json.loads(describe().model_dump_json()) | {"format_version": 3} | extra
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps(values))
    with pytest.raises(FailedPreconditionError, match="format version 3, this pyserve reads 1 to 2"):
        read_description(tmp_path, "models/pets")


def test_the_first_format_had_no_temperature(tmp_path: Path) -> None:
    values = json.loads(describe().model_dump_json()) | {"format_version": 1}
    del values["temperature"]
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps(values))
    assert read_description(tmp_path, "models/pets").temperature == 1


def test_a_derived_bundle_shares_the_files(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "derived"
    source.mkdir()
    folder.mkdir()
    write_description(source)
    changed = read_description(source, "models/pets").model_copy(update={"temperature": 1.7})
    derive_bundle(source, folder, changed)
    assert read_description(folder, "models/pets").temperature == 1.7
    assert read_description(source, "models/pets").temperature == 1
    assert all((folder / name).samefile(source / name) for name in (WEIGHTS_FILE, GOLDEN_FILE))
