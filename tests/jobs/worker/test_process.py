from __future__ import annotations

import errno
import os
import platform
import re
import sqlite3
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

from pyserve.errors import DataLossError, NotFoundError
from pyserve.jobs.events import JobState
from pyserve.jobs.worker.process import failure, waker


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (NotFoundError("datasets/x does not exist"), "NOT_FOUND", "datasets/x does not exist"),
        (DataLossError("/srv/data/a.bin is damaged"), "DATA_LOSS", "a.bin is damaged"),
        (MemoryError(), "RESOURCE_EXHAUSTED", "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory"), "RESOURCE_EXHAUSTED", "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "RESOURCE_EXHAUSTED", "memory ran out"),
        (KeyError("secret"), "INTERNAL", r"unexpected error in pyserve \(KeyError\)"),
        (sqlite3.OperationalError("database is locked"), "INTERNAL", "OperationalError"),
    ],
)
def test_an_exception_fails_the_job_with_a_sentence(error: Exception, status: str, sentence: str) -> None:
    ending = failure(error)
    assert ending.state is JobState.FAILED
    assert ending.error is not None
    assert (ending.error.status, ending.error.message) == (status, ending.reason)
    assert re.search(sentence, ending.reason)
    assert "secret" not in ending.reason
    assert "/srv" not in ending.reason


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/srv/data/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite3.OperationalError("database or disk is full"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_only_interrupts(error: Exception) -> None:
    ending = failure(error)
    assert (ending.state, ending.error) == (JobState.INTERRUPTED, None)
    assert "disk is full" in ending.reason


def test_a_wake_that_nobody_reads_is_no_error_of_the_job() -> None:
    reader, writer = os.pipe()
    wake = waker(writer)
    wake()
    assert os.read(reader, 10) == b"\n"
    os.close(reader)
    wake()
    os.close(writer)


@pytest.mark.parametrize("nice", [0, 19])
def test_standing_back_counts_against_other_sessions_too(nice: int) -> None:
    code = (
        "import os; from pathlib import Path; from pyserve.jobs.worker.process import stand_back;"
        f"stand_back({nice}); print(os.getpriority(os.PRIO_PROCESS, 0));"
        "path = Path('/proc/self/autogroup'); print(path.read_text().split()[-1] if path.exists() else 'none')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, start_new_session=True
    )
    own, group = done.stdout.split()
    assert int(own) == min(os.getpriority(os.PRIO_PROCESS, 0) + nice, 19)
    assert group in (str(nice), "none")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
@pytest.mark.parametrize("keeps", [True, False])
def test_freed_memory_comes_without_new_pages(keeps: bool) -> None:
    code = (
        "import resource, numpy as np; from pyserve.jobs.worker.process import keep_freed_memory;"
        f"{'keep_freed_memory()' if keeps else ''}\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    np.full(64 << 20, 1, np.uint8)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); print(faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 10) == keeps  # of 16,384 pages, or of 32 huge ones
