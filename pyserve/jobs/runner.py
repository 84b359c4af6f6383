"""Starting workers: what the scheduler needs of whatever runs them, and local processes as its first form.

A worker gets its order as the only command line argument and is told to stop by a line on its standard input,
"cancel" or "interrupt"; the end of that input means that the server is gone. What it writes to standard output has
no meaning beyond "look into the store".
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from pydantic import BaseModel, ConfigDict

import pyserve
from pyserve.jobs.paths import WORKER_LOG, job_folder, strike_folders

StopKind = Literal["cancel", "interrupt"]
_TAIL_BYTES = 8192
_LINE_LIMIT = 300
_SPIN_COUNT = "1000"


class WorkerOrder(BaseModel):
    """All that a worker must know beyond what the store tells of its job."""

    model_config = ConfigDict(frozen=True)

    name: str  # "jobs/{id}"
    attempt: int
    data_dir: Path  # absolute
    store_path: Path  # absolute
    threads: int  # 0: all cores
    nice: int = 0  # how far to stand back for others on the CPU, 0 to 19
    checkpoint_interval_s: float
    weights_roots: tuple[Path, ...] = ()


class Worker(Protocol):
    """One worker that was started."""

    async def send(self, stop: StopKind) -> None:
        """Ask it to stop at its next step; nothing happens where it has ended."""

    def kill(self) -> None:
        """End it at once, whatever it does."""

    def wakes(self) -> AsyncIterator[None]:
        """Something each time the worker has written to the store; ends when the worker does."""

    async def wait(self) -> str:
        """Return when it has ended: how, as a clause for users."""


class Runner(Protocol):
    """Starts workers somewhere."""

    async def start(self, order: WorkerOrder) -> Worker:
        """Start one.

        Raises:
            OSError: it cannot be started.
        """


class LocalRunner:
    """Workers as processes of this machine: fresh interpreters, never forks of the server.

    Args:
        command: what is started; the order is added as its last argument.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "pyserve.jobs.worker")) -> None:
        self._command = tuple(command)

    async def start(self, order: WorkerOrder) -> LocalWorker:
        """Start a process in a session and process group of its own; its stderr goes to the job's `worker.log`."""
        log_path = job_folder(order.data_dir, order.name) / WORKER_LOG
        with _open_log(log_path) as log:
            log_start = log.tell()
            # Not by the event loop: uvloop forks for real, and gRPC's fork handlers sometimes crash the child.
            # Not in another thread: the worker asks to die with the thread that started it.
            process = subprocess.Popen(  # noqa: ASYNC220  returns as soon as the process runs
                [*self._command, order.model_dump_json()],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )
        return LocalWorker(process, log_path, log_start)


class LocalWorker:
    """A local process."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path, log_start: int) -> None:
        self._process = process
        self._log_path = log_path
        self._log_start = log_start
        self._reads = False
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._watch, args=(self._ended.get_loop(),), daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id, and that of its group."""
        return self._process.pid

    async def send(self, stop: StopKind) -> None:
        """See `Worker.send`."""
        assert self._process.stdin is not None  # noqa: S101  opened above
        with suppress(BrokenPipeError, ValueError):  # it has ended; its end has been seen
            self._process.stdin.write(f"{stop}\n".encode())

    def kill(self) -> None:
        """See `Worker.kill`; takes what the worker started along."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wakes(self) -> AsyncIterator[None]:
        """See `Worker.wakes`."""
        assert self._process.stdout is not None  # noqa: S101  opened above
        self._reads = True
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        try:
            while await reader.read(4096):
                yield
        finally:
            transport.close()

    async def wait(self) -> str:
        """See `Worker.wait`."""
        returncode = await asyncio.shield(self._ended)
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None and not self._reads:  # else the transport closes it
            self._process.stdout.close()
        return exit_reason(returncode, _last_line(self._log_path, self._log_start))

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        returncode = self._process.wait()
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self._tell, returncode)

    def _tell(self, returncode: int) -> None:
        if not self._ended.done():
            self._ended.set_result(returncode)


def exit_reason(returncode: int, last_line: str = "") -> str:
    """How a process ended, in words.

    Args:
        returncode: as `subprocess` gives it: below zero the signal that killed it.
        last_line: the last line it wrote to stderr.
    """
    if returncode == 0:
        return "the worker ended without a result"
    if returncode > 0:
        told = f": {strike_folders(last_line)[:_LINE_LIMIT]}" if last_line else ""
        return f"the worker ended with exit code {returncode}{told}"
    number = -returncode
    try:
        name = f" ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        name = ""
    hint = (
        ": perhaps memory ran out, for then the system kills the largest process"
        if number == signal.SIGKILL
        else ""
    )
    return f"the worker was killed by signal {number}{name}{hint}"


def _environment() -> dict[str, str]:
    """The server's, with its own pyserve first on the path, and the folder it was started in not on it.

    Where the user has set no waiting policy of OpenMP's, threads of the worker spin for microseconds and not for
    milliseconds before they sleep: the cores are shared with other jobs and with the server's predictions
    (benchmarks/thread_waiting.py).
    """
    paths = [str(Path(pyserve.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"}
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    return environment


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _last_line(path: Path, start: int) -> str:
    """The last line that is not empty, of what was written from byte `start` on."""
    with path.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - _TAIL_BYTES))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
