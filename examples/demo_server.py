"""A server of the demo's own: a process on a free port that ends with the demo, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pyserve.errors import UnavailableError

START_S = 120.0
STOP_S = 30.0


@contextmanager
def running_server(data_dir: Path, log: Path, console: Console) -> Iterator[str]:
    """The address of a new server.

    It has a session of its own, so that Ctrl-C reaches the demo alone, which then stops the server in order.

    Raises:
        UnavailableError: where it does not start; the sentence ends with the log's last line.
    """
    command = [sys.executable, "-m", "pyserve", "serve", "--port", "0", "--data-dir", str(data_dir)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--log-level", "warning"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYSERVE_DRAIN_S": "10"},
        )
    try:
        with console.status("starts the server"):
            address = _address(process, log)
        yield address
    finally:
        with console.status("stops the server"):
            _stop(process)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """The last word of the server's first line."""
    assert process.stdout is not None
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        line = process.stdout.readline().split()
    finally:
        timer.cancel()
    if not line:
        said = log.read_text().strip().splitlines()
        raise UnavailableError(f"the server did not start: {said[-1] if said else f'see {log}'}")
    return line[-1]


def _stop(process: subprocess.Popen[str]) -> None:
    """Ask it to drain; a server that does not end in time is killed with all that it started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave it behind
    try:
        process.terminate()
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        if process.stdout is not None:
            process.stdout.close()
