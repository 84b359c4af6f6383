"""The bare predictor in a loop, without a server: what serving can reach at best. Prints a line of JSON.

serving_bare.py FOLDER PICTURES float32|bfloat16 THREADS SECONDS
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from pyserve.inference.bundle import load_bundle
from pyserve.inference.predictor import Predictor

BATCHES = (1, 8, 32)


def main() -> None:
    folder, pictures, dtype, threads, seconds = sys.argv[1:]
    torch.set_num_threads(int(threads))
    predictor = Predictor(load_bundle(Path(folder), dtype=getattr(torch, dtype)))
    files = [path.read_bytes() for path in sorted(Path(pictures).glob("*.jpg"))]
    with ThreadPoolExecutor(int(threads)) as pool:
        print(json.dumps({batch: loop(predictor, files, batch, pool, float(seconds)) for batch in BATCHES}))


def loop(
    predictor: Predictor, files: list[bytes], batch: int, pool: ThreadPoolExecutor, seconds: float
) -> dict[str, float]:
    """Pictures a second, and milliseconds a batch (median), decoding included."""
    decode = map if batch == 1 else pool.map

    def once(number: int) -> None:
        chosen = [files[(number * batch + i) % len(files)] for i in range(batch)]
        rows = np.stack(list(decode(predictor.decode, chosen)))
        predictor.probabilities(torch.from_numpy(rows))

    once(0)
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        once(len(times))
        times.append(time.perf_counter() - start)
    return {"per_s": batch / statistics.fmean(times), "p50_ms": statistics.median(times) * 1e3}


if __name__ == "__main__":
    main()
