"""`max_connections` is kept: what is beyond it is closed, what was there goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyserve.v1 import models_pb2
from tests.hostile import PREFACE, SETTINGS
from tests.server.support import ServerProcess, eventually

MOST = 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path / "data", max_connections=MOST)
    yield made
    assert made.terminate() == 0


def connect(server: ServerProcess) -> socket.socket:
    """An HTTP/2 connection, on which nothing is asked."""
    host, _, port = server.stubs.address.rpartition(":")
    connection = socket.create_connection((host, int(port)), 10)
    connection.sendall(PREFACE + SETTINGS)
    connection.settimeout(20)
    return connection


def is_open(connection: socket.socket) -> bool:
    """Whether the server has not closed it; reads what it has sent."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def test_connections_beyond_the_limit_are_closed(server: ServerProcess) -> None:
    models = server.stubs.models
    models.List(models_pb2.ListModelsRequest(), timeout=20)  # the first connection
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(MOST - 1)]
        more = [stack.enter_context(connect(server)) for _ in range(5)]
        eventually(lambda: not any(map(is_open, more)))
        assert all(map(is_open, held))
        models.List(models_pb2.ListModelsRequest(), timeout=20)
        held.pop().close()
        newcomers: list[socket.socket] = []

        def gets_in() -> bool:
            newcomers.append(stack.enter_context(connect(server)))
            try:
                return newcomers[-1].recv(100) != b""
            except OSError:
                return False

        eventually(gets_in)  # once the server has noticed that there is room
        models.List(models_pb2.ListModelsRequest(), timeout=20)
        assert is_open(newcomers[-1])
