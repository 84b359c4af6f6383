"""Mixed load against a server process: predictions, uploads, trainings, watches, cancels, callers that vanish.

    .venv/bin/python -m tests.soak --minutes 30        (scripts/soak)

Ends with a verdict: resident memory and open files of the server in the last quarter of the time, against those in
the second (in the first what is allocated once is), and how many calls ended otherwise than they should.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from pyserve.v1 import datasets_pb2, jobs_pb2, predict_pb2
from tests.hostile import MIB, open_files, prepared, rss_bytes
from tests.server.support import Stubs, pictures, png, upload_messages, zipped

INTERVAL_S = 1.0
MOST_GROWTH = 0.05  # of resident memory
SPARE_BYTES, SPARE_FILES = 30 * MIB, 16
EXPECTED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}


class Load:
    """What the callers do; each action is a method, and many threads run them."""

    def __init__(self, address: str) -> None:
        self.stubs = Stubs(address)
        self.done: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.stop = threading.Event()

    def repeat(self, action: Callable[[random.Random], None], seed: int, pause_s: float) -> None:
        """An action again and again, until `stop`."""
        rng = random.Random(seed)
        while not self.stop.wait(pause_s):
            try:
                action(rng)
            except grpc.RpcError as error:
                if error.code() not in EXPECTED:
                    self.unexpected.append(f"{action.__name__}: {error.code().name} {error.details()}")
            self.done[action.__name__] += 1

    def predict(self, rng: random.Random) -> None:
        images = [png(rng.randrange(3), rng.randrange(100)) for _ in range(rng.randint(1, 16))]
        request = predict_pb2.PredictRequest(model="models/colours", images=predict_pb2.EncodedImages(data=images))
        assert len(self.stubs.predict.Predict(request, timeout=60).predictions) == len(images)

    def vanish(self, rng: random.Random) -> None:
        """Predictions and uploads whose caller goes in the midst of them, with the connection."""
        stubs = Stubs(self.stubs.address)
        images = predict_pb2.EncodedImages(data=[png(0, i) for i in range(16)])
        stubs.predict.Predict.future(predict_pb2.PredictRequest(model="models/colours", images=images), timeout=20)
        messages = list(upload_messages(zipped(pictures(4)), f"gone-{rng.randrange(10**9)}"))
        stubs.datasets.Upload.future(iter(messages[: rng.randrange(1, len(messages))]), timeout=20)
        time.sleep(rng.random() / 20)
        stubs.close()

    def upload(self, rng: random.Random) -> None:
        name = f"soak-{rng.randrange(10**9)}"
        self.stubs.upload(zipped(pictures(4)), name)
        self.stubs.datasets.Delete(datasets_pb2.DeleteDatasetRequest(name=f"datasets/{name}"), timeout=60)

    def train(self, rng: random.Random) -> None:
        """A training that is watched to its end."""
        job = self.stubs.train(model_id="soak", seed=rng.randrange(1000))
        assert self.stubs.wait(job).state == jobs_pb2.SUCCEEDED

    def cancel(self, rng: random.Random) -> None:
        """A training that is watched for a while and cancelled."""
        job = self.stubs.train(model_id="soak", epochs=50)
        watch = self.stubs.jobs.Watch(jobs_pb2.WatchRequest(name=job.name), timeout=60)
        for _ in range(rng.randrange(1, 20)):
            next(watch, None)
        watch.cancel()
        self.stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=job.name), timeout=60)
        self.stubs.wait(job)


def soak(load: Load, pid: int, seconds: float) -> list[tuple[int, int]]:
    """Run the load; resident bytes and open files of the server, each second."""
    actions = ((load.predict, 0.05), (load.predict, 0.05), (load.vanish, 0.5), (load.upload, 1.0))
    actions += ((load.train, 2.0), (load.cancel, 2.0))
    threads = [
        threading.Thread(target=load.repeat, args=(action, i, pause)) for i, (action, pause) in enumerate(actions)
    ]
    for thread in threads:
        thread.start()
    seen, end = [], time.monotonic() + seconds
    while time.monotonic() < end and all(thread.is_alive() for thread in threads):
        time.sleep(INTERVAL_S)
        seen.append((rss_bytes(pid), open_files(pid)))
    load.stop.set()
    alive = sum(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join(120)
    assert alive == len(threads), "a caller met what it did not expect"
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = prepared(Path(folder) / "data")
        try:
            load = Load(server.stubs.address)
            seen = soak(load, server.process.pid, options.minutes * 60)
        finally:
            with suppress(ProcessLookupError):
                status = server.terminate()
        traced = server.log().count("Traceback")
    quarter = len(seen) // 4
    (rss, files), (rss_end, files_end) = (
        [statistics.median(column) for column in zip(*part, strict=True)]
        for part in (seen[quarter : 2 * quarter], seen[-quarter:])
    )
    print(*(f"{count:7} {name}" for name, count in sorted(load.done.items())), sep="\n")
    print(f"{rss / MIB:7.1f} MiB resident in the second quarter, {rss_end / MIB:.1f} in the last")
    print(f"{files:7.0f} open files in the second quarter, {files_end:.0f} in the last")
    print(f"{len(load.unexpected):7} unexpected errors {load.unexpected[:3]}, {traced} stack traces in the log")
    assert status == 0, f"the server ended with {status}"
    assert not load.unexpected
    assert traced == 0
    assert rss_end <= rss * (1 + MOST_GROWTH) + SPARE_BYTES
    assert files_end <= files + SPARE_FILES
    print("flat")


if __name__ == "__main__":
    main()
