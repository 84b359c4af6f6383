"""SECURITY.md names a test for each threat; each of them exists."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "SECURITY.md").read_text()
_LINES = [line for line in PAGE.split("## Threats")[1].splitlines() if line.startswith("| ")]
THREATS = [line.split("|")[1:-1] for line in _LINES[2:]]  # without the head


def test_the_table_is_read() -> None:
    assert len(THREATS) > 30


@pytest.mark.parametrize("row", THREATS, ids=lambda row: row[0].strip())
def test_each_threat_has_its_tests(row: list[str]) -> None:
    assert len(row) == 3
    named = re.findall(r"`([^`]+)`", row[2])
    assert named
    for name in named:
        path, _, function = name.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in defined, f"{path} has no {function}"
