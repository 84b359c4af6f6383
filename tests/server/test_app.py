"""Where a server listens, and what it says where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyserve.config import Settings
from pyserve.errors import InvalidArgumentError, UnavailableError
from pyserve.server.app import Server, check_host
from tests.server.support import Stubs


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_credentials(host: str) -> None:
    check_host(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
def test_listening_elsewhere_is_refused_unless_insecure(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"host: got .*, expected a loopback address"):
        check_host(Settings(host=host))
    check_host(Settings(host=host, insecure=True))
    with pytest.raises(InvalidArgumentError, match=r"metrics_host: got .*, expected a loopback address"):
        check_host(Settings(metrics_host=host))


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
    stubs.close()
    await server.stop(1)
