"""Clients that have nothing of pyserve but its protos, or not even those."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.support import CLASSES, Stubs, png

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python stubs made from `protos/` alone."""
    folder = tmp_path_factory.mktemp("generated")
    spec = importlib.util.find_spec("google.rpc")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    includes = Path(next(iter(spec.submodule_search_locations))).parents[1]
    files = [str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("v1/*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"-I{includes}"]
    subprocess.run([*command, f"--python_out={folder}", f"--grpc_python_out={folder}", *files], check=True)
    for package in (folder / "pyserve", folder / "pyserve" / "v1"):
        (package / "__init__.py").touch()
    return folder


def run_client(kind: str, stubs: Stubs, archive: bytes, folder: Path, dataset_id: str, *more: str) -> Any:
    (folder / "archive.zip").write_bytes(archive)
    (folder / "picture.png").write_bytes(png(0, 1234))
    arguments = [kind, stubs.address, "archive.zip", "picture.png", dataset_id, *more]
    # A script's folder comes first on its path: run from elsewhere, it sees nothing of the checkout.
    client = folder / "client.py"
    client.write_bytes((Path(__file__).parent / "plain_client.py").read_bytes())
    done = subprocess.run(
        [sys.executable, str(client), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(told: Any, dataset_id: str) -> None:
    assert told["classes"] == list(CLASSES)
    assert told["model"] == f"models/{dataset_id}/versions/1"
    assert {"state", "epoch", "artifact"} <= set(told["events"])
    assert sum(told["probabilities"]) == pytest.approx(1)
    assert len(told["probabilities"]) == len(CLASSES)


def test_stubs_from_the_protos_alone(stubs: Stubs, archive: bytes, generated: Path, tmp_path: Path) -> None:
    told = run_client("stubs", stubs, archive, tmp_path, "plain", str(generated))
    check(told, "plain")
    # "pyserve.v1" is the protos' own package; nothing else of that name may have been loaded.
    assert told["modules"]
    assert all(Path(file).is_relative_to(generated) for file in told["modules"].values())


def test_server_reflection(stubs: Stubs, archive: bytes, tmp_path: Path) -> None:
    told = run_client("reflection", stubs, archive, tmp_path, "reflected")
    check(told, "reflected")
    assert told["modules"] == {}
