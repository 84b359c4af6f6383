"""The audit log: lines, bounds, and what happens where it cannot be written."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pyserve.errors import FailedPreconditionError
from pyserve.security.audit import REFUSALS_PER_S, AuditLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "audit.jsonl"
    log = AuditLog(path, 10_000)
    log.write({"caller": "alice", "resource": "datasets/pets\nforged", "token": "", "ms": 1.5, "code": "OK"})
    log.write({"resource": "x" * 100_000})
    log.close()
    first, second = lines(path)
    assert list(first) == ["time", "caller", "resource", "ms", "code"]  # what is empty is left out
    assert first["resource"] == "datasets/pets\nforged"  # escaped: one line
    assert len(str(second["resource"])) == 300
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _age(file: Path) -> int:
    return int(file.suffix[1:]) if file.suffix[1:].isdigit() else 0


def test_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, 4096)
    for i in range(2000):
        log.write({"number": i})
    log.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 11
    assert all(file.stat().st_size <= 4096 for file in files)
    assert lines(path)[-1]["number"] == 1999
    assert (
        lines(tmp_path / "audit.jsonl.1")[-1]["number"] == int(str(lines(path)[0]["number"])) - 1
    )  # none is lost


def test_a_flood_of_refusals_is_counted(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, 1 << 20, clock=lambda: now[0])
    for _ in range(1000):
        log.write({"code": "UNAUTHENTICATED"}, refused=True)
    log.write({"code": "OK"})  # what was done is always written
    now[0] = 1.0
    log.write({"code": "UNAUTHENTICATED"}, refused=True)
    log.close()
    written = lines(path)
    assert len(written) == REFUSALS_PER_S + 2
    assert written[-2]["code"] == "OK"
    assert written[-1]["left_out"] == 1000 - REFUSALS_PER_S


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPreconditionError, match=r"audit_log .* cannot be written"):
        AuditLog(tmp_path / "file" / "audit.jsonl", 10_000)


def test_a_line_that_cannot_be_written_is_told_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, 10_000)
    log._file.stream.close()
    log._file.stream = Path("/dev/full").open("w")  # noqa: SIM115  closed by the log
    log.write({"code": "OK"})
    assert "the audit log cannot be written" in caplog.text
    assert '"code": "OK"' in caplog.text
    with pytest.raises(OSError, match="No space left"):
        log.close()
