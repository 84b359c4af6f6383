"""Build the client's own distribution, pyserve-client: pure Python, for any system, without torch.

    .venv/bin/python scripts/client_wheel.py FOLDER    # dist/ by default; prints the wheel's path

A distribution and not an extra of pyserve: an extra can only add to what is installed, and pyserve itself is
compiled for one system against torch. The modules are those of this tree, the versions of their dependencies those
of pyproject.toml. Whoever installs pyserve has the client already.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pip._vendor import tomli

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("__init__.py", "__main__.py", "addresses.py", "errors.py", "py.typed", "client", "v1")
COMMAND_LINE = ("cli", "config.py", "security", "spec", "ui")
NEEDS = ("grpcio", "grpcio-status", "grpcio-health-checking", "protobuf")
COMMAND_LINE_NEEDS = ("pydantic", "pydantic-settings", "tomli", "typer", "rich")


def name_of(requirement: str) -> str:
    """ "grpcio" of "grpcio>=1.75.1"."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def pyproject(project: dict[str, Any]) -> str:
    """The distribution's own pyproject.toml, from the whole project's table."""
    known = {name_of(line): line for line in project["dependencies"]}
    needs, command_line = ([known[name] for name in names] for names in (NEEDS, COMMAND_LINE_NEEDS))
    classifiers = [line for line in project["classifiers"] if "C++" not in line and "Linux" not in line]
    return f"""
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "pyserve-client"
version = {project["version"]!r}
description = "Client of pyserve, which trains, tunes and serves image classifiers over gRPC"
readme = "README.md"
requires-python = {project["requires-python"]!r}
license = {project["license"]!r}
license-files = ["LICENSE"]
classifiers = {classifiers!r}
dependencies = {needs!r}

[project.optional-dependencies]
cli = {command_line!r}
ui = {[*command_line, *project["optional-dependencies"]["ui"]]!r}
arrays = [{known["numpy"]!r}]

[project.scripts]
pyserve = "pyserve.__main__:main"

[tool.setuptools.packages.find]
include = ["pyserve*"]

[tool.setuptools.package-data]
pyserve = ["py.typed", "**/*.pyi"]
"""


def build(target: Path) -> Path:
    """Write the wheel into a folder; its path."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory(prefix="pyserve-client-") as name:
        tree = Path(name)
        (tree / "pyproject.toml").write_text(pyproject(project))
        shutil.copy(ROOT / "LICENSE", tree)
        shutil.copy(ROOT / "docs" / "client.md", tree / "README.md")
        for entry in (*MODULES, *COMMAND_LINE):
            source, copy = ROOT / "pyserve" / entry, tree / "pyserve" / entry
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(source, copy)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", str(target), str(tree)], check=True)
    [wheel] = target.glob(f"pyserve_client-{project['version']}-py3-none-any.whl")
    return wheel


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
