from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from pyserve.jobs.paths import WORKER_LOG, job_folder
from pyserve.jobs.runner import LocalRunner, WorkerOrder, exit_reason
from tests.jobs.support import alive, eventually

NAME = "jobs/01890000-0000-7000-8000-000000000000"


def order(tmp_path: Path) -> WorkerOrder:
    return WorkerOrder(
        name=NAME,
        attempt=1,
        data_dir=tmp_path,
        store_path=tmp_path / "jobs.sqlite3",
        threads=1,
        checkpoint_interval_s=60,
    )


def runner(program: str) -> LocalRunner:
    return LocalRunner((sys.executable, "-c", program))


@pytest.mark.parametrize(
    ("returncode", "line", "reason"),
    [
        (0, "", "the worker ended without a result"),
        (3, "", "the worker ended with exit code 3"),
        (1, "ImportError: /usr/lib/x.so: no", "the worker ended with exit code 1: ImportError: x.so: no"),
        (-15, "", "the worker was killed by signal 15 (SIGTERM)"),
        (-11, "noise", "the worker was killed by signal 11 (SIGSEGV)"),
        (-34, "", "the worker was killed by signal 34"),
    ],
)
def test_how_a_worker_ended(returncode: int, line: str, reason: str) -> None:
    assert exit_reason(returncode, line).startswith(reason)


def test_a_kill_may_be_for_want_of_memory() -> None:
    assert "memory ran out" in exit_reason(-9)


async def test_the_order_is_the_last_argument(tmp_path: Path) -> None:
    program = "import sys; print(sys.argv[1], file=sys.stderr); sys.exit(5)"
    worker = await runner(program).start(order(tmp_path))
    assert "exit code 5" in await worker.wait()
    told = (job_folder(tmp_path, NAME) / WORKER_LOG).read_text()
    assert WorkerOrder.model_validate_json(told) == order(tmp_path)


async def test_it_has_a_process_group_of_its_own_and_the_last_line_counts(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getpgid(0) == os.getpid(), '\\n\\n', file=sys.stderr); sys.exit(1)"
    worker = await runner(program).start(order(tmp_path))
    assert await worker.wait() == "the worker ended with exit code 1: True"


async def test_lines_of_an_earlier_worker_are_not_its_last(tmp_path: Path) -> None:
    first = await runner("import sys; sys.exit('first')").start(order(tmp_path))
    assert (await first.wait()).endswith(": first")
    second = await runner("import sys; sys.exit(1)").start(order(tmp_path))
    assert await second.wait() == "the worker ended with exit code 1"
    assert "first" in (job_folder(tmp_path, NAME) / WORKER_LOG).read_text()


async def test_wakes_and_stop_lines(tmp_path: Path) -> None:
    program = "import sys; print(flush=True); sys.exit(sys.stdin.readline().strip())"
    worker = await runner(program).start(order(tmp_path))
    wakes = worker.wakes()
    await asyncio.wait_for(anext(wakes), 20)
    await worker.send("cancel")
    assert [wake async for wake in wakes] == []
    assert (await worker.wait()).endswith("exit code 1: cancel")
    await worker.send("interrupt")  # to nobody


async def test_kill_takes_the_whole_group(tmp_path: Path) -> None:
    program = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    worker = await runner(program).start(order(tmp_path))
    assert worker._process.stdout is not None
    child = int(await asyncio.to_thread(worker._process.stdout.readline))
    worker.kill()
    assert "signal 9 (SIGKILL)" in await worker.wait()
    worker.kill()  # it is gone: nothing happens
    await eventually(lambda: not alive(child))


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({}, "spins 1000 policy"),
        ({"GOMP_SPINCOUNT": "5"}, "spins 5 policy"),
        ({"OMP_WAIT_POLICY": "active"}, "spins policy active"),
    ],
)
async def test_threads_wait_briefly_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, str], told: str
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    program = "echo spins $GOMP_SPINCOUNT policy $OMP_WAIT_POLICY >&2; exit 1"
    worker = await LocalRunner(("sh", "-c", program)).start(order(tmp_path))
    assert (await worker.wait()).endswith(f": {told}")
