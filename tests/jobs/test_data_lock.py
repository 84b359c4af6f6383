from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyserve.errors import FailedPreconditionError
from pyserve.jobs.data_lock import DataLock


def test_a_second_one_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    lock = DataLock(tmp_path / "data")
    with pytest.raises(FailedPreconditionError, match=rf"another server \(process {os.getpid()}\)"):
        DataLock(tmp_path / "data")
    lock.release()
    DataLock(tmp_path / "data").release()


def test_a_killed_process_frees_it(tmp_path: Path) -> None:
    program = "import sys, time; from pathlib import Path; from pyserve.jobs.data_lock import DataLock; "
    program += "lock = DataLock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(FailedPreconditionError, match=f"process {process.pid}"):
            DataLock(tmp_path)
        process.kill()
        process.wait()
    DataLock(tmp_path).release()
