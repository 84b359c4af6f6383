from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyserve.data import staging
from pyserve.data.staging import remove_folder, remove_leftovers, staging_folder, sync_disk
from tests.data.support import tree, write


def test_a_folder_that_is_renamed_stays(tmp_path: Path) -> None:
    with staging_folder(tmp_path) as folder:
        write(folder, {"a": b"x"})
        folder.rename(tmp_path / "done")
    assert tree(tmp_path) == {"done/a": b"x"}


def test_a_folder_that_is_not_renamed_goes(tmp_path: Path) -> None:
    with staging_folder(tmp_path) as folder:
        write(folder, {"a/b": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from pyserve.data.staging import staging_folder
with staging_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_bytes(b"dead")
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert list(tree(tmp_path).values()) == [b"dead"]
    with staging_folder(tmp_path) as mine:
        write(mine, {"a": b"alive"})
        remove_leftovers(tmp_path)
        assert tree(tmp_path) == {f"{mine.name}/a": b"alive"}


def test_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"pets/a": b"x"})
    monkeypatch.setattr(staging.shutil, "rmtree", lambda *args, **kwargs: None)  # the process dies here
    remove_folder(tmp_path / "pets")
    assert not (tmp_path / "pets").exists()
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "pets")


def test_syncing(tmp_path: Path) -> None:
    sync_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_disk(tmp_path / "nowhere")
