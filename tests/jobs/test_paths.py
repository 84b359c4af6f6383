from __future__ import annotations

from pathlib import Path

import pytest

from pyserve.errors import InvalidArgumentError
from pyserve.jobs.paths import artifacts_folder, job_folder, strike_folders

NAME = "jobs/01890000-0000-7000-8000-000000000000"


def test_folders_of_a_job(tmp_path: Path) -> None:
    assert (
        artifacts_folder(tmp_path, NAME)
        == job_folder(tmp_path, NAME) / "artifacts"
        == tmp_path / NAME / "artifacts"
    )
    with pytest.raises(InvalidArgumentError):
        job_folder(tmp_path, "jobs/../../etc")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read '/srv/data/a b.bin'", "cannot read 'a b.bin'"),
        ("/srv/data/file.pth: gone", "file.pth: gone"),
        ("(/etc/passwd)", "(passwd)"),
        ("datasets/pets and models/pets/versions/1", "datasets/pets and models/pets/versions/1"),
        ("1/2 of train/cat/1.png", "1/2 of train/cat/1.png"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("12 / 13", "12 / 13"),
    ],
)
def test_absolute_paths_are_cut_down(text: str, told: str) -> None:
    assert strike_folders(text) == told
