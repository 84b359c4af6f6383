"""The README keeps its promises: figures from the results, targets, paths and commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_figures_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_paths_exist() -> None:
    named = set(re.findall(r"`((?:pyserve|csrc|benchmarks|docs|examples|scripts|protos|tests)/[\w./-]+)`", README))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", README))
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert named
    assert not missing


def test_commands_exist() -> None:
    shells = "".join(re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    commands = set(re.findall(r"^pyserve ([a-z-]+(?: [a-z-]+(?= (?:pets|jobs/|models/)))?)", shells, re.MULTILINE))
    assert commands >= {"serve", "train", "predict"}
    for command in sorted(commands):
        done = subprocess.run(
            [sys.executable, "-m", "pyserve", *command.split(), "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"pyserve {command}: {done.stderr}"
