"""Faults that are injected into a server that runs: each is told, and nothing that was promised is lost.

Kills of server and worker are in test_restart.py, callers that leave a prediction in test_prediction.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.config import Settings
from pyserve.errors import FailedPreconditionError
from pyserve.jobs.events import CheckpointSaved
from pyserve.jobs.store import JobStore
from pyserve.server.app import Server
from pyserve.spec import TrainSpec
from pyserve.v1 import datasets_pb2, jobs_pb2, predict_pb2
from tests.server.conftest import ServerThread
from tests.server.support import (
    ServerProcess,
    Stubs,
    children,
    eventually,
    failure,
    pictures,
    png,
    train_request,
    upload_messages,
    zipped,
)
from tests.server.test_restart import FIELDS, STEP, begin, get, resume, undisturbed, weights

__all__ = ["undisturbed"]  # a fixture

MIB = 1024 * 1024
# root without the right to write where nobody may
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
IN_FLIGHT, PICTURES = 32, 200


class Disk:
    """A file system of its own, in memory, small, that a test may fill or make read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def free_bytes(self) -> int:
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take what is free, but for `leave_bytes`."""
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:  # the server writes meanwhile
            while (size := self.free_bytes() - leave_bytes) > 0:
                file.write(b"\0" * min(size, MIB))

    def make_room(self) -> None:
        self._filler.unlink()

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={96 * MIB}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system in memory")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def running(data_dir: Path, **settings: object) -> Iterator[ServerProcess]:
    server = ServerProcess(data_dir, **settings)
    try:
        yield server
    finally:
        server.terminate()


def trained(server: ServerProcess) -> str:
    """The name of a model that can predict."""
    server.stubs.upload(zipped(pictures()), "colours")
    job = server.stubs.wait(server.stubs.train(model_id="colours"))
    assert job.state == jobs_pb2.SUCCEEDED, f"{job.reason}\n{server.log()}"
    return job.train_result.model


def prediction(model: str, count: int = 1) -> predict_pb2.PredictRequest:
    images = predict_pb2.EncodedImages(data=[png(0, i) for i in range(count)])
    return predict_pb2.PredictRequest(model=model, images=images)


def test_sigterm_answers_what_is_in_flight(process: ServerProcess) -> None:
    """32 predictions and a training run: health turns first, all 32 are answered, the job keeps a checkpoint."""
    model = trained(process)
    job = process.stubs.train(**FIELDS | {"epochs": 500})  # it must not end meanwhile
    process.stubs.wait_for_step(job, STEP)
    health = health_pb2_grpc.HealthStub(process.stubs.channel)
    seen: list[tuple[float, int]] = []
    request = prediction(model, PICTURES)  # so many that the first answer is well before the last

    def watch() -> None:
        for answer in health.Watch(health_pb2.HealthCheckRequest(), timeout=60):
            seen.append((time.monotonic(), answer.status))

    watcher = threading.Thread(target=watch)
    watcher.start()
    answered: list[float] = []

    def ask(_: int) -> int:
        answer = process.stubs.predict.Predict(request, timeout=60)
        answered.append(time.monotonic())
        return len(answer.predictions)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        answers = [pool.submit(ask, i) for i in range(IN_FLIGHT)]
        eventually(lambda: answered)
        process.process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in answers] == [PICTURES] * IN_FLIGHT
    watcher.join(60)
    assert process.terminate() == 0
    assert [status for _, status in seen] == [health_pb2.HealthCheckResponse.SERVING, 2]
    assert seen[-1][0] < max(answered), "health turned after the last answer"
    store = JobStore(process.data_dir / "jobs.sqlite3")
    record = store.get(job.name)
    events = store.events(job.name)
    store.close()
    assert record.state.value == "INTERRUPTED"
    assert isinstance(events[-2].payload, CheckpointSaved), events[-4:]  # the last word before the state


def test_full_disk(disk: Disk, undisturbed: bytes) -> None:
    """Uploads and jobs are refused or interrupted with that reason; with room everything goes on."""
    with running(disk.folder / "data", checkpoint_interval_s=0) as server:
        job = begin(server)
        disk.fill()
        interrupted = server.stubs.wait(job) if _ends(server, job) else get(server, job)
        assert "disk is full" in interrupted.reason + server.log()
        disk.fill()  # what the worker gave back
        code, message, _, info = failure(lambda: server.stubs.upload(zipped(pictures(20)), "more"))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "disk" in message
        assert info.metadata
        for _ in range(50):  # until the store's file has no room left either
            call = server.stubs.jobs.Train.future(train_request(**FIELDS), timeout=20)
            if call.code() is not grpc.StatusCode.OK:
                break
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "disk is full" in call.details()
        disk.make_room()
        for other in server.stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20).jobs:
            if other.name != job.name and other.state not in (jobs_pb2.INTERRUPTED, jobs_pb2.CANCELLED):
                server.stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=other.name), timeout=20)
        eventually(lambda: get(server, job).state == jobs_pb2.INTERRUPTED)
        resume(server, job)
        assert weights(server, server.stubs.wait(job)) == undisturbed
        events = server.stubs.watch(job)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))


def _ends(server: ServerProcess, job: jobs_pb2.Job, timeout_s: float = 20) -> bool:
    """Whether the store could still take the job's end; on a disk without a byte it cannot until there is room."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if get(server, job).state == jobs_pb2.INTERRUPTED:
            return True
        if not children(server.process.pid):
            return False
        time.sleep(0.1)
    raise AssertionError("the worker neither ended nor said why")


def test_read_only_folder(tmp_path: Path) -> None:
    """A server that runs goes on predicting and says why it takes nothing in; with rights all goes on."""
    without = tmp_path / "without-the-right" / "data"
    without.parent.mkdir()
    if subprocess.run([*UNPRIVILEGED, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs setpriv")
    with running(without, prefix=UNPRIVILEGED) as server:
        model = trained(server)
        folders = [path for path in (without, *without.rglob("*")) if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        code, message, _, _ = failure(lambda: server.stubs.upload(zipped(pictures()), "more"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "data folder cannot be written" in message
        job = server.stubs.wait(server.stubs.train())
        assert job.state == jobs_pb2.INTERRUPTED
        assert "could not be started" in job.reason
        server.stubs.predict.Predict(prediction(model), timeout=60)
        for folder in folders:
            folder.chmod(0o755)
        server.stubs.upload(zipped(pictures()), "more")
        resume(server, job)
        assert server.stubs.wait(job).state == jobs_pb2.SUCCEEDED


def test_server_that_starts_on_a_read_only_disk(disk: Disk) -> None:
    with running(disk.folder):
        pass
    disk.remount("ro")
    with pytest.raises(AssertionError, match=r"data_dir .*/disk cannot be written: read-only file system"):
        ServerProcess(disk.folder)
    with pytest.raises(FailedPreconditionError, match=r"data_dir .*/disk/new cannot be written: read-only file"):
        Server(Settings(data_dir=disk.folder / "new"))


@pytest.mark.parametrize("damage", ["no database", "a page in the middle", "cut off"])
def test_damaged_job_store(tmp_path: Path, damage: str) -> None:
    """The server does not start, names the file and what to do, and leaves every byte as it is."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    path = data_dir / "jobs.sqlite3"
    store = JobStore(path)
    for _ in range(200):
        store.create(TrainSpec(dataset="datasets/pets"), str(uuid.uuid4()))
    store.close()
    whole = path.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    damaged = {
        "no database": b"hello" * 1000,
        "a page in the middle": whole[:middle] + os.urandom(4096) + whole[middle + 4096 :],
        "cut off": whole[:middle],
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(AssertionError, match=r"jobs\.sqlite3 is damaged: .*; it was left as it is: put a copy in"):
        ServerProcess(data_dir)
    assert path.read_bytes() == damaged
    path.unlink()
    with running(data_dir) as server:
        assert server.stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20).jobs == []


def test_store_that_is_damaged_while_the_server_runs(process: ServerProcess) -> None:
    """Calls say so, health and predictions go on, and nothing crashes."""
    model = trained(process)
    with sqlite3.connect(process.data_dir / "jobs.sqlite3") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with (process.data_dir / "jobs.sqlite3").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(os.fstat(file.fileno()).st_size - 4096))

    def code() -> grpc.StatusCode:
        return process.stubs.jobs.Train.future(train_request(), timeout=20).code()

    eventually(lambda: code() is grpc.StatusCode.DATA_LOSS)
    process.stubs.predict.Predict(prediction(model), timeout=60)
    health = health_pb2_grpc.HealthStub(process.stubs.channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1


def test_damaged_checkpoint(process: ServerProcess, undisturbed: bytes) -> None:
    """The one before is taken, which is said, and the weights come out as undisturbed."""
    process.terminate()
    process._settings["checkpoint_interval_s"] = 0
    process.start()
    job = begin(process)
    process.kill()
    folder = process.data_dir / "jobs" / job.name.removeprefix("jobs/") / "checkpoints"
    newest = folder / "checkpoint.safetensors"
    if not newest.exists():  # killed between the two renames of a save
        shutil.copy(folder / "checkpoint-previous.safetensors", newest)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.write_bytes(data)
    process.start()
    resume(process, job)
    assert weights(process, process.stubs.wait(job)) == undisturbed
    warnings = {e.warning.code: e.warning.message for e in process.stubs.watch(job) if e.HasField("warning")}
    assert "checkpoint.safetensors is damaged" in warnings["checkpoint_damaged"]
    assert "going on from the one before" in warnings["checkpoint_damaged"]


def test_memory_runs_out(process: ServerProcess, undisturbed: bytes) -> None:
    """The system would kill the worker and not the server; that is told, and the job can be resumed."""
    job = begin(process)
    [worker] = children(process.process.pid)
    score = {pid: int(Path(f"/proc/{pid}/oom_score").read_text()) for pid in (worker, process.process.pid)}
    assert score[worker] > score[process.process.pid] + 300
    os.kill(worker, signal.SIGKILL)  # as the system does
    interrupted = process.stubs.wait(job)
    assert interrupted.state == jobs_pb2.INTERRUPTED
    assert "perhaps memory ran out" in interrupted.reason
    resume(process, job)
    assert weights(process, process.stubs.wait(job)) == undisturbed


@pytest.mark.parametrize("jump_s", [-86_400.0 * 400, 86_400.0 * 400])
def test_clock_jumps(tmp_path: Path, jump_s: float) -> None:
    """The server's clock is set by a year and more while jobs wait, run and are watched."""
    switch = tmp_path / "jump"
    first = (
        "import pathlib, time; real = time.time\n"
        f"time.time = lambda: real() + {jump_s} * pathlib.Path({str(switch)!r}).exists()"
    )
    with running(tmp_path / "data", first=first, resume_on_start=True) as server:
        archive = zipped(pictures())
        server.stubs.upload(archive, "colours")
        before = server.stubs.train(**FIELDS)
        server.stubs.wait_for_step(before, STEP)
        switch.touch()
        after = server.stubs.train()
        done = [server.stubs.wait(job) for job in (before, after)]
        assert [job.state for job in done] == [jobs_pb2.SUCCEEDED] * 2
        assert abs(done[1].create_time.seconds - done[0].create_time.seconds - jump_s) < 3600  # it did jump
        listed = [job.name for job in server.stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20).jobs]
        assert listed == [after.name, before.name]  # in the order of their creation, whatever the clock says
        for job in done:
            assert [event.seq for event in server.stubs.watch(job)] == list(range(1, job.last_seq + 1))


def test_client_that_vanishes_while_it_uploads(server: ServerThread, archive: bytes) -> None:
    """Its connection is cut: what came is kept, nothing stays open, and another connection goes on from there."""
    request_id = str(uuid.uuid4())
    half = len(archive) // 2
    sent = threading.Event()

    def messages() -> Iterator[datasets_pb2.UploadRequest]:
        count = 0
        for message in upload_messages(archive, "vanished", request_id=request_id, chunk=100):
            count += len(message.chunk)
            if count > half:
                sent.wait(30)
                return
            yield message

    other = Stubs(server.stubs.address)
    call = other.datasets.Upload.future(messages(), timeout=60)
    query = datasets_pb2.QueryUploadRequest(request_id=request_id)
    eventually(lambda: server.stubs.datasets.QueryUpload(query, timeout=20).committed_bytes > half - 200)
    assert any(request_id in name for name in open_files())
    other.channel.close()
    sent.set()
    assert call.code() is grpc.StatusCode.CANCELLED
    eventually(lambda: not any(request_id in name for name in open_files()))
    committed = server.stubs.datasets.QueryUpload(query, timeout=20).committed_bytes
    dataset = server.stubs.upload(archive, "vanished", request_id=request_id, offset_bytes=committed)
    assert dataset.train_count + dataset.valid_count == 36


def test_client_that_vanishes_while_it_watches(server: ServerThread) -> None:
    """The job goes on, nobody is left listening, and another one sees all of it."""
    scheduler: Any = server.server._scheduler
    job = server.stubs.train(epochs=4)
    watchers = [Stubs(server.stubs.address) for _ in range(5)]
    streams = [w.jobs.Watch(jobs_pb2.WatchRequest(name=job.name), timeout=60) for w in watchers]
    for stream in streams:
        next(stream)
    for watcher in watchers:
        watcher.channel.close()
    done = server.stubs.wait(job)
    assert done.state == jobs_pb2.SUCCEEDED
    assert [e.seq for e in server.stubs.watch(done)] == list(range(1, done.last_seq + 1))
    eventually(lambda: job.name not in scheduler._listeners)


def open_files() -> list[str]:
    """What this process, and so the server in it, has open."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(link.readlink()))
        except OSError:
            continue
    return names
