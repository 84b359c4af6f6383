"""Settings: where they come from, which wins, and what wrong ones are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyserve import config
from pyserve.errors import InvalidArgumentError


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pyserve.toml"
    file.write_text("port = 1\nmax_running_jobs = 3\ndrain_s = 5.5\n")
    monkeypatch.setenv("PYSERVE_CONFIG", str(file))
    monkeypatch.setenv("PYSERVE_PORT", "2")
    monkeypatch.setenv("PYSERVE_MAX_RUNNING_JOBS", "4")
    settings = config.load(port=7, host=None)
    assert (settings.port, settings.max_running_jobs, settings.drain_s) == (7, 4, 5.5)
    assert settings.host == "127.0.0.1"


def test_lists_come_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSERVE_DATASET_ROOTS", '["/a", "/b"]')
    assert config.load().dataset_roots == [Path("/a"), Path("/b")]


@pytest.mark.parametrize(("flags", "words"), [({"port": -1}, "port: got -1"), ({"colour": 1}, "colour: got 1")])
def test_wrong_settings_are_named(flags: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        config.load(**flags)


def test_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSERVE_CONFIG", "/nowhere/pyserve.toml")
    with pytest.raises(InvalidArgumentError, match=r"nowhere/pyserve\.toml"):
        config.load()


def test_unreadable_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pyserve.toml"
    file.write_text("port = = 3")
    monkeypatch.setenv("PYSERVE_CONFIG", str(file))
    with pytest.raises(InvalidArgumentError, match=r"pyserve\.toml is not valid TOML: Invalid value"):
        config.load()
    file.write_text("")
    monkeypatch.setenv("PYSERVE_DATASET_ROOTS", "/a")
    with pytest.raises(InvalidArgumentError, match="dataset_roots"):
        config.load()


def test_origins_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pyserve.toml"
    file.write_text("port = 1\nhost = 'localhost'\n")
    monkeypatch.setenv("PYSERVE_CONFIG", str(file))
    monkeypatch.setenv("PYSERVE_PORT", "2")
    origins = config.origins()
    assert set(origins) == set(config.Settings.model_fields)
    assert origins["port"] == "environment PYSERVE_PORT"
    assert origins["host"] == f"file {file}"
    assert origins["data_dir"] == "default"


def test_every_setting_is_described() -> None:
    assert all(field.description for field in config.Settings.model_fields.values())
