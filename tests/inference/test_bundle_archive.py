"""Archives of bundles: the same bytes every time, and back as they were."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest

from pyserve.errors import DataError
from pyserve.inference import bundle_archive
from tests.inference.support import write_description


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_description(folder)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 10_000)
    (folder / "golden.safetensors").write_bytes(b"")
    return folder


def test_what_is_packed_comes_out_again(bundle: Path, tmp_path: Path) -> None:
    archive, target = tmp_path / "x.tar", tmp_path / "target"
    chunks = list(bundle_archive.packed(bundle))
    assert max(map(len, chunks)) <= 1 << 20
    archive.write_bytes(b"".join(chunks))
    target.mkdir()
    bundle_archive.unpack(archive, target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in bundle.iterdir()}
    size, digest = bundle_archive.measure(bundle_archive.packed(bundle))
    assert (size, digest) == (archive.stat().st_size, hashlib.sha256(archive.read_bytes()).hexdigest())
    (bundle / "model.safetensors").touch()
    assert b"".join(bundle_archive.packed(bundle)) == archive.read_bytes()


def test_the_archive_is_a_tar_that_anybody_reads(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"".join(bundle_archive.packed(bundle)))
    listed = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True).stdout.split()
    assert listed == ["bundle.json", "golden.safetensors", "model.safetensors"]


def test_a_compressed_archive_is_refused(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "x.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(bundle / "bundle.json", "bundle.json")
    with pytest.raises(DataError, match="no tar of a model bundle"):
        bundle_archive.unpack(archive, tmp_path / "bundle")
