"""Where a server listens, and what it says where it cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyserve.config import Settings
from pyserve.errors import UnavailableError
from pyserve.server.app import Server
from pyserve.v1 import models_pb2
from tests.server.support import Stubs


async def test_taken_port(tmp_path: Path) -> None:
    first = Server(Settings(data_dir=tmp_path / "first", port=0))
    port = await first.start()
    second = Server(Settings(data_dir=tmp_path / "second", port=port))
    with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}: is another server there"):
        await second.start()
    await first.stop(1)
    again = Server(Settings(data_dir=tmp_path / "second", port=port))  # the folder was given back
    await again.start()
    await again.stop(1)


async def test_ipv6(tmp_path: Path) -> None:
    server = Server(Settings(data_dir=tmp_path, host="::1", port=0))
    try:
        port = await server.start()
    except UnavailableError:
        pytest.skip("needs IPv6 on the loopback interface")
    stubs = Stubs(f"[::1]:{port}")
    listed = await asyncio.to_thread(stubs.models.List, models_pb2.ListModelsRequest(), timeout=20)
    assert not listed.models
    stubs.close()
    await server.stop(1)
