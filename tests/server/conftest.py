"""Servers and data that the tests of the server share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyserve.config import Settings
from pyserve.server.app import Server
from pyserve.v1 import jobs_pb2
from tests.server.support import ServerProcess, Stubs, pictures, zipped


class ServerThread:
    """A server inside this process, its event loop in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = Server(settings)
        port = self._run(self.server.start())
        self.stubs = Stubs(f"127.0.0.1:{port}")

    def stop(self) -> None:
        self.stubs.close()
        self._run(self.server.stop(20))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _run(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def archive() -> bytes:
    """A zip with three easily told classes."""
    return zipped(pictures())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, archive: bytes) -> Iterator[ServerThread]:
    """A server with one dataset, "datasets/colours"."""
    folder = tmp_path_factory.mktemp("server")
    roots = folder / "roots"
    roots.mkdir()
    settings = Settings(
        data_dir=folder / "data",
        port=0,
        job_threads=1,
        predict_threads=1,
        dataset_roots=[roots],
        weights_roots=[roots],
        max_image_pixels=1_000_000,
        max_predict_images=64,
        max_archive_bytes=20_000_000,
        checkpoint_interval_s=0.2,
        job_nice=0,  # tests share the machine with whatever else runs
        metrics_port=0,
    )
    thread = ServerThread(settings)
    thread.stubs.upload(archive, "colours")
    yield thread
    thread.stop()


@pytest.fixture(scope="session")
def stubs(server: ServerThread) -> Stubs:
    return server.stubs


@pytest.fixture(scope="session")
def trained(stubs: Stubs) -> jobs_pb2.Job:
    """A finished training whose model is "models/colours"."""
    job = stubs.wait(stubs.train(epochs=6, model_id="colours"))
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    return job


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server process that a test may kill."""
    server = ServerProcess(tmp_path / "data")
    yield server
    server.terminate()
