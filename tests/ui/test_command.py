from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from pyserve.errors import InvalidArgumentError
from pyserve.ui.serving import serve
from tests.cli_support import Run, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def test_beyond_loopback_it_asks_for_insecure(run: Run) -> None:
    done = run("ui", "--host", "192.0.2.1", "--port", "0")
    assert done.code == 2
    assert "host: got '192.0.2.1'" in done.err
    assert "--insecure" in done.err


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InvalidArgumentError, match=rf"port: got {port}, expected one that is free on 127.0.0.1"
        ):
            serve({}, port=port)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range_is_told(port: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"port: got {port}, expected 0 to 65535"):
        serve({}, port=port)


def test_a_foreign_address_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match="expected a loopback address"):
        serve({}, host="192.0.2.1")
    with pytest.raises(InvalidArgumentError, match=r"192\.0\.2\.1"):
        serve({}, host="192.0.2.1", port=0, insecure=True)


def test_without_the_extra_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['nicegui'] = None\nfrom pyserve.cli import main\nmain(['ui'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "nicegui is missing: `pip install 'pyserve[ui]'` brings the page" in done.stderr


def test_a_wrong_connection_is_told_before_anything_listens(run: Run) -> None:
    done = run("--cert", "own.pem", "ui")
    assert done.code == 2
    assert "key" in done.err
