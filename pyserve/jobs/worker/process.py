"""Being a worker: the order, requests to stop, the end with the server, and errors as the job's end."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyserve.errors import InternalError, PyserveError, ResourceExhaustedError, is_disk_full, status_name
from pyserve.jobs.events import JobState
from pyserve.jobs.paths import job_folder, strike_folders
from pyserve.jobs.records import JobError
from pyserve.jobs.runner import StopKind, WorkerOrder
from pyserve.jobs.store import JobStore, StaleAttemptError
from pyserve.jobs.worker.report import Ending, JobReport
from pyserve.spec import TrainSpec

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger(__name__)

EXIT_STALE = 3  # somebody else has the job, or nobody should
EXIT_ORPHANED = 4  # the server is gone
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_OOM_SCORE_ADJ = 500  # of -1000 (never killed) to 1000 (first)


@dataclass
class Control:
    """What the worker was asked to do, by the server or by a signal."""

    stop: StopKind | None = None
    reason: str = "the server stopped while the job was running"

    def listen(self) -> None:
        """Begin to read stdin; its end means that the server is gone, and ends this process mid-step."""
        threading.Thread(target=self._read, name="control", daemon=True).start()
        signal.signal(signal.SIGTERM, self._terminate)

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            word = line.strip()
            if word == b"cancel":
                self.stop = "cancel"
            elif word == b"interrupt":
                self.stop = self.stop or "interrupt"
        os._exit(EXIT_ORPHANED)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.stop = self.stop or "interrupt"
        self.reason = f"the worker was asked to end by signal {number} ({signal.Signals(number).name})"


def main(argv: list[str]) -> int:
    """Do what the order says.

    Args:
        argv: the order, JSON of a `WorkerOrder`.

    Returns:
        Exit status: 0 where the store tells how the job ended.
    """
    order = WorkerOrder.model_validate_json(argv[0])
    wake = _take_stdout()
    control = Control()
    control.listen()
    _die_with_parent()
    stand_back(order.nice)
    _die_before_the_server()
    keep_freed_memory()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _alone(order):
        store = JobStore(order.store_path)
        report = JobReport(store, order, wake)
        try:
            return _work(order, report, control)
        except StaleAttemptError as error:
            log.warning("%s", error)
            return EXIT_STALE
        finally:
            store.close()


def _work(order: WorkerOrder, report: JobReport, control: Control) -> int:
    report.check()
    log.info("%s, attempt %d, process %d", order.name, order.attempt, os.getpid())
    try:
        ending = _run(order, report, control)
    except StaleAttemptError:
        raise
    except Exception as error:
        log.exception("%s ends with an error", order.name)
        ending = failure(error)
    report.finish(ending)
    return 0


def _run(order: WorkerOrder, report: JobReport, control: Control) -> Ending:
    import torch

    torch.set_num_threads(order.threads or len(os.sched_getaffinity(0)))
    spec = report.record.spec
    if isinstance(spec, TrainSpec):
        from pyserve.jobs.worker.train import run_training

        return run_training(spec, order, report, control)
    from pyserve.jobs.worker.find_lr import run_range_test

    return run_range_test(spec, order, report, control)


def failure(error: Exception) -> Ending:
    """How a job ends by an exception. A full disk interrupts only: with room the job can go on."""
    if is_disk_full(error):
        return Ending(JobState.INTERRUPTED, "the server's disk is full; resume the job when there is room")
    told = _as_ours(error)
    message = strike_folders(told.message)
    return Ending(JobState.FAILED, message, error=JobError(status=status_name(told), message=message))


def _as_ours(error: Exception) -> PyserveError:
    if isinstance(error, PyserveError):
        return error
    if _is_out_of_memory(error):
        return ResourceExhaustedError("memory ran out: use a smaller batch_size or image_size")
    kind = type(error).__name__
    return InternalError(f"an unexpected error in pyserve ({kind}); the job's worker.log on the server tells more")


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, sqlite3.Error):
        return False
    on_cpu = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _take_stdout() -> Callable[[], None]:
    """Keep stdout for waking the server; what libraries print goes to stderr."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return waker(pipe)


def waker(pipe: int) -> Callable[[], None]:
    """What wakes the reader of a pipe; without a reader it does nothing, for `Control` sees to that end."""

    def wake() -> None:
        with suppress(BrokenPipeError):
            os.write(pipe, b"\n")

    return wake


def _die_with_parent() -> None:
    """On Linux: be killed when the server dies, even where this interpreter is stuck in a library."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stand_back(nice: int) -> None:
    """Take the processor only as far as others, above all predictions, leave it.

    Args:
        nice: 0 for an equal share, 19 for what is left over.
    """
    if not nice:
        return
    os.nice(nice)
    # Where Linux shares the processor out by sessions first, `nice` counts within this one's only.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


def _die_before_the_server() -> None:
    """On Linux: where memory runs out, be the one that the system kills; a job can be resumed."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ))


def keep_freed_memory() -> None:
    """With glibc: what was freed stays the process's, for what it allocates next.

    A training step takes and frees hundreds of megabytes. Returned to the system each time, as large blocks are by
    default, they come back as pages to be zeroed, which took a quarter to a third of a step's time.
    """
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def _alone(order: WorkerOrder) -> Iterator[None]:
    """Wait until an earlier worker of this job has really ended: two must not write into one folder."""
    folder = job_folder(order.data_dir, order.name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
