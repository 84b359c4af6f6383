"""`pyserve doctor`: each check where all is well, and where something lacks."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyserve.config import GIB, Settings
from pyserve.jobs.data_lock import DataLock
from pyserve.server import doctor
from pyserve.server.doctor import State
from tests.cli_support import runner


def settings(folder: Path, **fields: object) -> Settings:
    return Settings(data_dir=folder / "data", port=0, **fields)  # type: ignore[arg-type]


def test_a_machine_that_runs_the_tests_is_fit(tmp_path: Path) -> None:
    findings = {finding.check: finding for finding in doctor.examine(settings(tmp_path))}
    assert len(findings) == len(doctor.CHECKS)
    assert {f.check for f in findings.values() if f.state is State.PROBLEM} == set()
    assert all(finding.found for finding in findings.values())
    assert all(finding.advice for finding in findings.values() if finding.state is not State.OK)
    assert sys.version.split()[0] in findings["python"].found
    assert f"{len(os.sched_getaffinity(0))} of" in findings["cpu"].found
    assert "torch 2." in findings["torch"].found
    assert "libjpeg-turbo" in findings["decoder"].found
    assert findings["kernels"].found.startswith("compiled by GCC")
    assert not (tmp_path / "data").exists()  # it changes nothing


@pytest.mark.parametrize("module", ["torch", "pyserve.kernels", "PIL"])
def test_what_cannot_be_loaded_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    findings = {finding.check: finding for finding in doctor.examine(settings(tmp_path))}
    check = {"torch": "torch", "pyserve.kernels": "kernels", "PIL": "decoder"}[module]
    assert findings[check].state is State.PROBLEM
    assert "cannot be loaded" in findings[check].found
    assert findings[check].advice
    assert findings["disk"].state is not State.PROBLEM


def test_an_old_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: {"sse4_2"})
    found = doctor.cpu(settings(tmp_path))
    assert (found.state, "no AVX2" in found.found) == (State.NOTE, True)
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: {"avx2", "fma"})
    assert doctor.cpu(settings(tmp_path)).state is State.OK
    found = doctor.cpu(settings(tmp_path, predict_dtype="bfloat16"))
    assert (found.state, "float32" in found.advice) == (State.NOTE, True)


def test_more_threads_than_cores(tmp_path: Path) -> None:
    found = doctor.threads(settings(tmp_path, job_threads=10_000))
    assert found.state is State.NOTE
    assert "job_threads" in found.advice
    assert "predict_threads" not in found.advice


def test_kernels_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyserve.kernels

    facts = SimpleNamespace(build={"compiler": "12"}, isa_in_use="scalar", isa_found="avx2", cuda_loaded=False)
    monkeypatch.setattr(pyserve.kernels, "info", lambda: facts)
    found = doctor.kernels(settings(tmp_path))
    assert (found.state, "PYSERVE_CPU_ISA" in found.advice) == (State.NOTE, True)


def test_little_memory_and_a_small_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "container_limit_bytes", lambda: GIB)
    found = doctor.memory(settings(tmp_path))
    assert (found.state, "this container may have 1.0 GiB" in found.found) == (State.NOTE, True)
    monkeypatch.setattr(doctor, "container_limit_bytes", lambda: None)
    monkeypatch.setattr(doctor, "_meminfo", lambda key: 64 * GIB)
    assert doctor.memory(settings(tmp_path)).state is State.OK


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=100 * GIB, free=GIB)
    monkeypatch.setattr("pyserve.server.doctor.shutil.disk_usage", lambda folder: usage)
    assert doctor.disk(settings(tmp_path)).state is State.NOTE


def test_a_folder_that_is_a_file_or_another_servers(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert doctor.data_folder(settings(tmp_path)).state is State.PROBLEM
    (tmp_path / "data").unlink()
    lock = DataLock(tmp_path / "data")
    found = doctor.data_folder(settings(tmp_path))
    assert (found.state, f"process {os.getpid()}" in found.found) == (State.NOTE, True)
    lock.release()
    assert doctor.data_folder(settings(tmp_path)).state is State.OK
    DataLock(tmp_path / "data").release()  # looking has left it free


def test_few_descriptors(tmp_path: Path) -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert doctor.descriptors(settings(tmp_path, max_connections=soft)).state is State.NOTE
    assert doctor.descriptors(settings(tmp_path, max_connections=1)).state is State.OK


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = Settings(data_dir=tmp_path, port=listener.getsockname()[1])
        assert doctor.port(taken).state is State.PROBLEM
    assert doctor.port(taken).state is State.OK
    assert doctor.port(settings(tmp_path, host="nowhere.invalid")).state is State.PROBLEM


def test_listening_beyond_loopback(tmp_path: Path) -> None:
    found = doctor.security(settings(tmp_path, host="0.0.0.0"))  # noqa: S104
    assert (found.state, "tls_cert" in found.found) == (State.PROBLEM, True)
    found = doctor.security(settings(tmp_path, host="0.0.0.0", insecure=True))  # noqa: S104
    assert found.state is State.NOTE
    assert doctor.security(settings(tmp_path)).state is State.OK


def test_optional_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("pyserve.server.doctor.importlib.metadata.version", missing)
    found = doctor.packages(settings(tmp_path))
    assert found.state is State.NOTE
    assert all(name in found.found for name in doctor.OPTIONAL)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner(capsys)
    monkeypatch.setenv("PYSERVE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PYSERVE_PORT", "0")
    done = run("doctor", "--json")
    told = json.loads(done.out)
    assert (done.code, told["ready"]) == (0, True)
    assert [check["check"] for check in told["checks"]] == [f.check for f in doctor.examine(settings(tmp_path))]
    monkeypatch.setenv("PYSERVE_HOST", "0.0.0.0")  # noqa: S104
    done = run("doctor")
    assert done.code == 4
    assert "in the server's way: security" in done.err
    assert "problem" in done.out
