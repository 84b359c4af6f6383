"""Small pictures, archives and a server process for the tests of the server."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import struct
import subprocess
import sys
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from pyserve.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    insight_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2_grpc,
    predict_pb2_grpc,
)

SIZE = 16
CLASSES = ("blue", "green", "red")
TERMINAL = (jobs_pb2.SUCCEEDED, jobs_pb2.FAILED, jobs_pb2.CANCELLED)
ENDED = (*TERMINAL, jobs_pb2.INTERRUPTED)


def png(label: int, seed: int) -> bytes:
    """A noisy picture whose strongest colour channel is its class."""
    rng = np.random.default_rng([label, seed])
    pixels = rng.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 2 - label] += 100
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(per_class: int = 12, classes: Sequence[str] = CLASSES) -> dict[str, bytes]:
    """Path → picture, one folder per class."""
    return {f"{name}/{i}.png": png(label, i) for label, name in enumerate(classes) for i in range(per_class)}


def bomb() -> bytes:
    """A PNG whose header promises 60000 × 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


TRUNCATED = png(0, 99)[:-200]


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def upload_messages(
    archive: bytes, dataset_id: str, *, chunk: int = 1000, **header: Any
) -> Iterator[datasets_pb2.UploadRequest]:
    """The messages of an upload from the header's offset on."""
    fields = {"size_bytes": len(archive), "sha256": hashlib.sha256(archive).hexdigest()} | header
    yield datasets_pb2.UploadRequest(header=datasets_pb2.UploadHeader(dataset_id=dataset_id, **fields))
    for i in range(fields.get("offset_bytes", 0), len(archive), chunk):
        yield datasets_pb2.UploadRequest(chunk=archive[i : i + chunk])


class Stubs:
    """One channel and the stubs of all services on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address)
        self.datasets = datasets_pb2_grpc.DatasetsStub(self.channel)
        self.jobs = jobs_pb2_grpc.JobsStub(self.channel)
        self.predict = predict_pb2_grpc.PredictStub(self.channel)
        self.models = models_pb2_grpc.ModelsStub(self.channel)
        self.insight = insight_pb2_grpc.InsightStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def upload(self, archive: bytes, dataset_id: str, **header: Any) -> datasets_pb2.Dataset:
        return self.datasets.Upload(upload_messages(archive, dataset_id, **header), timeout=60)

    def train(self, dataset: str = "datasets/colours", **fields: Any) -> jobs_pb2.Job:
        return self.jobs.Train(train_request(dataset, **fields), timeout=20)

    def watch(self, job: jobs_pb2.Job, from_seq: int = 0) -> list[jobs_pb2.Event]:
        """All events until the job has ended."""
        return list(self.jobs.Watch(jobs_pb2.WatchRequest(name=job.name, from_seq=from_seq), timeout=120))

    def wait(self, job: jobs_pb2.Job) -> jobs_pb2.Job:
        """The job when it has ended or is INTERRUPTED."""
        self.watch(job)
        return self.jobs.Get(jobs_pb2.GetJobRequest(name=job.name), timeout=20)

    def wait_for_step(self, job: jobs_pb2.Job, step: int) -> None:
        """Return when the job has done some steps."""
        stream = self.jobs.Watch(jobs_pb2.WatchRequest(name=job.name), timeout=120)
        for event in stream:
            if event.WhichOneof("event") == "step" and event.step.step >= step:
                stream.cancel()
                return
        raise AssertionError("the job ended before it had done that many steps")


def train_request(dataset: str = "datasets/colours", **fields: Any) -> jobs_pb2.TrainRequest:
    """A training of a few seconds."""
    spec: dict[str, Any] = {
        "architecture": "smallnet",
        "image_size": SIZE,
        "batch_size": 8,
        "epochs": 2,
        "learning_rate": 0.01,
        "augment": "flip",
        "device": "cpu",
        "model_id": "some",  # "colours" is that of the fixture `trained`
    }
    request_id = fields.pop("request_id", "")
    train = jobs_pb2.TrainSpec(dataset=dataset, **(spec | fields))
    return jobs_pb2.TrainRequest(request_id=request_id, train=train)


def failure(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, dict[str, str], Any]:
    """Code, sentence, field violations and ErrorInfo of a call that must fail."""
    with pytest.raises(grpc.RpcError) as info:
        call()
    error: Any = info.value
    status: Any = rpc_status.from_call(error)
    assert status is not None, error
    fields: dict[str, str] = {}
    told = error_details_pb2.ErrorInfo()
    for detail in status.details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            fields = {v.field: v.description for v in request.field_violations}
        detail.Unpack(told)
    assert told.domain == "pyserve"
    assert told.metadata["request_id"]
    assert "Traceback" not in status.message
    return error.code(), status.message, fields, told


class ServerProcess:
    """`pyserve serve` in a process of its own, on a free port, with a data folder that outlives it.

    `prefix`: a command that starts it; `first`: Python that it runs first.
    """

    def __init__(self, data_dir: Path, prefix: Sequence[str] = (), first: str = "", **settings: object) -> None:
        self.data_dir = data_dir
        self._prefix = prefix
        self._first = first
        self._settings = {"job_threads": 1, "predict_threads": 1, "job_nice": 0, "max_running_jobs": 2} | settings
        self._log = data_dir.parent / f"{data_dir.name}-{uuid.uuid4().hex[:8]}.log"
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        environment = {f"PYSERVE_{name.upper()}": str(value) for name, value in self._settings.items()}
        environment |= {"PYSERVE_DATA_DIR": str(self.data_dir), "PYSERVE_PORT": "0"}
        code = (
            f"{self._first}\nfrom pyserve.config import load; from pyserve.server.app import serve;"
            "serve(load(), on_ready=lambda address: print('READY', address, flush=True))"
        )
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, sys.executable, "-c", code],
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("READY "):
            self.process.kill()
            self.process.communicate()
            raise AssertionError(self.log())
        self.stubs = Stubs(line.split()[1])

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """kill -9 of the server alone; its workers notice by themselves."""
        self.process.kill()
        self._close()

    def terminate(self, timeout_s: float = 60) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout_s)
        self._close()
        return status

    def _close(self) -> None:
        self.process.wait(60)
        self.stubs.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def eventually(condition: Any, timeout_s: float = 30) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
