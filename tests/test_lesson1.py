"""docs/lesson1.md: every block runs, and the notebook is made from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def lesson1(option: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "lesson1.py", option]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


def test_every_block_runs() -> None:
    done = lesson1("--quick")
    assert done.returncode == 0, done.stderr


def test_the_notebook_is_the_page() -> None:
    done = lesson1("--check")
    assert done.returncode == 0, done.stderr
