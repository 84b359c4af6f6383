"""Hostile calls: no crash, no hang, no error that a handler did not expect, memory and files given back."""

from __future__ import annotations

from pathlib import Path

from tests.hostile import MIB, attack, methods, prepared

CALLS, CONNECTIONS = 400, 200


def test_hostile_calls(tmp_path: Path) -> None:
    server = prepared(tmp_path / "data")
    try:
        result = attack(server, CALLS, CONNECTIONS)
        log = server.log()
    finally:
        assert server.terminate() == 0
    assert result.unexpected == [], log[-5000:]
    assert "Traceback" not in log
    assert sum(name.startswith("kind ") for name in result.outcomes) == 16  # each was tried
    assert result.outcomes["INVALID_ARGUMENT"]
    assert result.rss_after - result.rss_before < 4 * 65 * MIB  # a few of its largest messages, which malloc keeps
    assert result.files_after <= result.files_before + 8


def test_every_call_is_attacked() -> None:
    names = {method.path for method in methods()}
    assert {"/pyserve.v1.Datasets/Upload", "/pyserve.v1.Predict/Predict", "/pyserve.v1.Jobs/Delete"} <= names
    assert len(names) > 20
