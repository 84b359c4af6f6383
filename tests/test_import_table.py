"""Who may import whom, and which modules must never load torch. Walks the source; knows only files that exist."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "pyserve"

# Rooms, and the rooms they may import beside themselves and what everybody may.
EVERYBODY_MAY = {"", "addresses", "errors", "config", "spec", "paging"}
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),  # pyserve/__init__.py
    "addresses": set(),
    "errors": set(),
    "config": set(),
    "spec": set(),
    "paging": set(),
    "_torchvision": set(),
    "v1": set(),
    "open_inference": set(),
    "kernels": set(),
    "data": {"kernels", "_torchvision"},
    "models": {"kernels", "_torchvision"},
    "training": {"models", "data", "kernels"},
    "inference": {"models", "data", "kernels"},
    "insight": {"inference", "data", "kernels"},
    "jobs": {"data", "inference"},  # whatever does not load torch: see NEVER_LOAD_TORCH
    "jobs.worker": {"jobs", "training", "insight", "inference", "data", "models", "kernels"},
    "security": set(),
    "server": {"jobs", "inference", "insight", "data", "models", "kernels", "security", "v1", "open_inference"},
    "client": {"v1"},
    "ui": {"client", "v1"},
    "cli": {"client", "security", "v1"},  # server and ui: see below
    "__main__": {"cli"},
}
# Commands, and what they start: imported when they run.
STARTS = {("pyserve.cli.server", "server"), ("pyserve.cli.page", "ui"), ("pyserve.cli.kernels", "kernels")}
FOREIGN_TO_KERNELS = {"torch"}
NEVER_LOAD_TORCH = (
    "addresses",
    "errors",
    "config",
    "spec",
    "paging",
    "v1",
    "open_inference",
    "client",
    "cli",
    "ui",
    "security",
    "jobs",  # but its worker
    "data.images",
    "data.manifest",
    "data.folder",
    "data.archive",
    "data.catalog",
    "data.staging",
    "inference.description",
    "inference.machine",
    "inference.model_info",
    "inference.model_record",
    "inference.model_store",
    "server.doctor",  # it says so where torch cannot be loaded
)


class Import(NamedTuple):
    """One import statement's target."""

    module: str  # absolute: "pyserve.kernels.ops", "torch.nn"
    inside: bool  # of a function: not run when the module is loaded
    line: int


def name_of(path: Path) -> str:
    """ "pyserve.kernels.ops" of its file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports(module: str) -> list[Import]:
    """All imports of a module, but those for type checkers only."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_imports(ast.parse(path.read_text()), package, inside=False))


def _imports(node: ast.AST, package: str, inside: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, inside, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in child.names:  # a submodule, or a name within the module
                whole = f"{base}.{alias.name}"
                yield Import(whole if whole in MODULES else base, inside, child.lineno)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(other, package, inside)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, package, inside or function)


def room(module: str) -> str:
    """The row of the table that a module of ours belongs to."""
    parts = module.split(".")[1:]
    two = ".".join(parts[:2])
    return two if two in MAY_IMPORT else (parts[0] if parts else "")


@functools.cache
def loads(module: str) -> dict[str, str]:
    """Every module that loading this one loads, with the one that imports it; others' by top-level name too."""
    found: dict[str, str] = {}
    waiting = [(module, "")]
    while waiting:
        name, importer = waiting.pop()
        if name in found:
            continue
        found[name] = importer
        if name in MODULES:
            waiting += [(entry.module, name) for entry in imports(name) if not entry.inside]
            waiting += [(name.rpartition(".")[0], name)] if "." in name else []
        elif name.split(".")[0] != name:
            waiting.append((name.split(".")[0], importer))
    return found


def torch_free() -> list[str]:
    """The modules present that must never load torch."""
    rooms = [f"pyserve.{name}" for name in NEVER_LOAD_TORCH]
    return [
        module
        for module in MODULES
        if any(module == name or module.startswith(f"{name}.") for name in rooms) and room(module) != "jobs.worker"
    ]


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_what_the_table_allows(module: str) -> None:
    own = room(module)
    assert own in MAY_IMPORT, f"{module}: which room is it? Add it to the table"
    allowed = MAY_IMPORT[own] | EVERYBODY_MAY | {own}
    for entry in imports(module):
        if entry.module.split(".")[0] != "pyserve":
            continue
        if entry.inside and (module, room(entry.module)) in STARTS:
            continue
        target = room(entry.module) if entry.module != "pyserve._C" else "kernels"
        assert target in allowed, f"{module}:{entry.line}: {own} may not import {entry.module}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "kernels"])
def test_kernels_need_nothing_but_torch(module: str) -> None:
    foreign = {entry.module.split(".")[0] for entry in imports(module)} - sys.stdlib_module_names - {"pyserve"}
    assert foreign <= FOREIGN_TO_KERNELS


@pytest.mark.parametrize("module", torch_free())
def test_light_modules_import_nothing_that_loads_torch(module: str) -> None:
    found = loads(module)
    heavy = [name for name in ("torch", "torchvision", "safetensors.torch") if name in found]
    chain = heavy[:1]
    while chain and found[chain[-1]]:
        chain.append(found[chain[-1]])
    assert not heavy, "loads torch: " + " ← ".join(chain)


def test_light_modules_really_do_not_load_torch() -> None:
    program = f"""
import importlib, sys
for name in {torch_free()!r}:
    if name.rpartition(".")[2] != "__main__":
        importlib.import_module(name)
        assert "torch" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_walk_sees_what_is_there() -> None:
    """Against a walk that finds nothing."""
    assert "torch" in loads("pyserve.kernels.ops")
    assert "torch" in loads("pyserve.models")
    assert Import("pyserve.errors", False, 0)[:2] in {entry[:2] for entry in imports("pyserve.spec.parse")}
    assert any(entry.inside for entry in imports("pyserve.models.weights"))
    assert {"pyserve.client", "pyserve.errors", "pyserve.spec", "pyserve.config"} <= set(torch_free())
