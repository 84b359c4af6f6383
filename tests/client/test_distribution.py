"""The client's own distribution: it works with what it names and nothing else, and so without torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.client.guarded import Guarded
from tests.conftest import ROOT
from tests.server.support import pictures, zipped


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("client_wheel", ROOT / "scripts" / "client_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = script.build(tmp_path_factory.mktemp("dist"))
    return path


def required(metadata: Distribution, extra: str = "") -> dict[str, Distribution]:
    """Every distribution that one needs, by name."""
    found: dict[str, Distribution] = {}
    for line in metadata.requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            other = distribution(requirement.name)
            assert requirement.specifier.contains(other.version, prereleases=True), line
            found[requirement.name] = other
            found |= required(other)
    return found


def environment(wheel: Path, folder: Path, extra: str = "") -> Path:
    """A folder for modules with the wheel, what it needs, and nothing else; links to what is installed here."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    [metadata] = folder.glob("*.dist-info")
    for needed in required(Distribution.at(metadata), extra).values():
        for file in needed.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                link = folder / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(needed.locate_file(file))))
    return folder


def python(folder: Path, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python that finds its own library and the folder's modules, and no other."""
    program = f"import sys; sys.path.append({str(folder)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", program, *arguments]
    return subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(wheel, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def with_cli(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(wheel, tmp_path_factory.mktemp("cli"), "cli")


def test_what_it_holds(wheel: Path, script: ModuleType) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {"pyserve/py.typed", "pyserve/v1/jobs_pb2.pyi", "pyserve/client/__init__.py"} <= set(names)
    assert not [name for name in names if name.endswith(".so") or "/server/" in name or "/kernels/" in name]
    assert "torch" not in {
        Requirement(line[15:]).name for line in text.splitlines() if line[:14] == "Requires-Dist:"
    }
    version = ast.literal_eval((ROOT / "pyserve" / "__init__.py").read_text().rsplit("=", 1)[1].strip())
    assert f"\nVersion: {version}\n" in text


def test_every_module_loads_without_torch(with_cli: Path) -> None:
    names = [
        ".".join(path.relative_to(with_cli).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((with_cli / "pyserve").rglob("*.py"))
        if "ui" not in path.parts  # which needs its own extra
    ]
    code = f"""
import importlib, importlib.util
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("numpy") is None
for name in {names!r}:
    importlib.import_module(name)
print(len(sys.modules))
"""
    done = python(with_cli, code)
    assert done.returncode == 0, done.stderr


CALLS = """
import asyncio
from pyserve.client import AsyncClient, Client
from pyserve.errors import InvalidArgumentError, NotFoundError
archive = sys.argv[1]
with Client() as client:
    assert client.health() == "SERVING"
    assert client.upload_dataset(archive, "colours").name == "datasets/colours"
    try:
        client.train(dataset="datasets/colours", epochs=-1)
    except InvalidArgumentError as error:
        assert error.fields[0].field == "train.epochs", error.fields

async def main():
    async with AsyncClient() as client:
        try:
            await client.get_dataset("datasets/none")
        except NotFoundError as error:
            assert "datasets/colours" in error.message
        await client.delete_dataset("datasets/colours")
asyncio.run(main())
print("done")
"""


def test_both_clients_work_with_tls_and_token(bare: Path, guarded: Guarded, tmp_path: Path) -> None:
    archive = tmp_path / "colours.zip"
    archive.write_bytes(zipped(pictures()))
    done = python(bare, CALLS, str(archive), **variables(guarded))
    assert done.stdout == "done\n", done.stderr


def variables(guarded: Guarded) -> dict[str, str]:
    names = {"PYSERVE_CA": guarded.ca, "PYSERVE_CERT": guarded.client.cert, "PYSERVE_KEY": guarded.client.key}
    return {name: str(path) for name, path in names.items()} | {
        "PYSERVE_ADDRESS": guarded.address,
        "PYSERVE_TOKEN": guarded.token,
    }


RUN = "from pyserve.__main__ import main; main()"


def test_command_line(with_cli: Path, guarded: Guarded) -> None:
    done = python(with_cli, RUN, "jobs", "list", "--json", **variables(guarded))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_command_line_without_its_extra_says_what_to_install(bare: Path) -> None:
    done = python(bare, RUN, "jobs", "list")
    assert done.returncode == 1
    assert "pip install 'pyserve-client[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_serving_needs_the_whole(with_cli: Path) -> None:
    done = python(with_cli, RUN, "serve")
    assert done.returncode == 4
    assert "this is the client alone; `pip install pyserve` brings the server" in done.stderr
