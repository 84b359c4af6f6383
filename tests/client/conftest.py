"""A fake server and both clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from pyserve.client import Client
from tests.cli_support import Run, runner
from tests.client.fake import Driven, FakeServer
from tests.client.guarded import Guarded

OPTIONS = {"timeout_s": 20.0, "retry_s": 5.0, "reconnect_s": 10.0}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line; without an address of the test's own it finds no server."""
    monkeypatch.setenv("PYSERVE_ADDRESS", os.environ.get("PYSERVE_ADDRESS", "127.0.0.1:1"))
    return runner(capsys)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, fake: FakeServer) -> Iterator[Any]:
    kind = Client if request.param == "blocking" else Driven
    made = kind(fake.address, **OPTIONS)
    yield made
    made.close()


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(tmp_path_factory.mktemp("guarded"))
    yield server
    server.stop()
