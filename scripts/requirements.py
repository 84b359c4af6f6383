"""Print what pyproject.toml asks for: the dependencies and those of the extras named as arguments.

The list lives in pyproject.toml alone. Read with the copy of tomli that pip carries, so that Python 3.10, which
has no tomllib, needs nothing installed first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pip._vendor import tomli


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The requirement lines of a project table, extras that name the project itself followed."""
    lines = list(project["dependencies"])
    own = f"{project['name']}["
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            if line.startswith(own):
                names = line[len(own) :].rstrip("]").split(",")
                lines += requirements({**project, "dependencies": []}, names)
            else:
                lines.append(line)
    return lines


if __name__ == "__main__":
    table = tomli.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    print("\n".join(requirements(table, sys.argv[1:])))
