"""A fake server and both clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyserve.client import Client
from tests.client.fake import Driven, FakeServer

OPTIONS = {"timeout_s": 20.0, "retry_s": 5.0, "reconnect_s": 10.0}


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
