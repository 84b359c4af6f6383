"""A worker without torch: does what the training's `model_id` says, with the real store and the real control."""

from __future__ import annotations

import os
import signal
import sys
import time

from pyserve.jobs.events import CheckpointSaved, JobState, StepDone
from pyserve.jobs.records import Progress
from pyserve.jobs.runner import WorkerOrder
from pyserve.jobs.store import JobStore
from tests.jobs.support import RESULT


def main() -> None:
    order = WorkerOrder.model_validate_json(sys.argv[1])
    store = JobStore(order.store_path)
    what = store.get(order.name).training.model_id
    for step in range(1, 4):
        event = StepDone(step=step, total_steps=3, loss=1.0 / step)
        store.append(order.name, order.attempt, event, Progress(step=step, total_steps=3))
        print(flush=True)
    if what == "killed" and order.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        print("Traceback …\nOSError: /srv/secret/place/file.bin is gone", file=sys.stderr)
        sys.exit(7)
    if what == "silent":
        sys.exit(0)
    if what == "deaf":
        time.sleep(600)
    if what == "lingers" and order.attempt == 1:
        store.finish(order.name, order.attempt, JobState.INTERRUPTED, "enough for today")
        print(flush=True)
        time.sleep(1)
        return
    if what in ("waits", "lingers"):
        word = sys.stdin.readline().strip()
        if not word:
            os._exit(4)
        store.append(order.name, order.attempt, CheckpointSaved(step=3, epoch=0))
        state = JobState.CANCELLED if word == "cancel" else JobState.INTERRUPTED
        store.finish(order.name, order.attempt, state, f"heard {word}")
        return
    store.finish(order.name, order.attempt, JobState.SUCCEEDED, result=RESULT)
    print(flush=True)


main()
