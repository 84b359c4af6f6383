"""The protos: generated code is fresh, and every service, call, message, field and enum value is commented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run(
        [ROOT / "scripts" / "protos", tmp_path],
        check=True,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*_pb2*"))
    kept = sorted(p.relative_to(ROOT) for p in (ROOT / "pyserve").glob("*/*_pb2*"))
    assert made == kept
    stale = [str(p) for p in made if (tmp_path / p).read_text() != (ROOT / p).read_text()]
    assert not stale, f"run scripts/protos: {stale}"


@pytest.mark.parametrize("path", PROTOS, ids=lambda p: p.stem)
def test_everything_is_commented(path: Path) -> None:
    lines = path.read_text().splitlines()
    declaration = re.compile(
        r"^\s*(service|rpc)\s+(\w+)|^\s+(?:optional |repeated )?[\w.<>, ]+\s(\w+) = \d+;|^\s+([A-Z_]+) = \d+;"
    )
    bare = []
    for number, line in enumerate(lines):
        match = declaration.match(line)
        if not match:
            continue
        name = next(group for group in match.groups()[1:] if group)
        commented = lines[number - 1].strip().startswith("//")
        if not commented and not name.endswith("_UNSPECIFIED") and not in_oneof(lines, number):
            bare.append(f"{path.name}:{number + 1} {name}")
    assert not bare


def in_oneof(lines: list[str], number: int) -> bool:
    """Whether the line is a choice of a oneof, whose meaning is that of its message."""
    opened = [line for line in lines[:number] if re.match(r"^\s*(oneof|message|enum|service) \w+ \{|^\s*\}", line)]
    return bool(opened) and opened[-1].strip().startswith("oneof")
