"""How OpenMP's threads wait between two parallel regions, and what that costs jobs that share the cores.

    python benchmarks/thread_waiting.py --json benchmarks/results/thread_waiting.json

libgomp, which torch's wheels bring, lets idle threads spin (by default 300,000 turns, some milliseconds) before
they sleep: quick for a process that has the cores to itself, ruinous for several that share them. Each setting
trains in processes of its own with as many threads as there are cores, first one process, then two at once; they
take turns, medians count. Speeds are pictures a second of all processes together.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

import report

SETTINGS = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
}
NETWORKS = {"smallnet": (32, 64), "mobilenet_v2": (96, 16)}  # image size, batch size
WARM_UP_STEPS = 2


def work(architecture: str, seconds: float, threads: int) -> None:
    """The process that is measured: train on noise, print pictures a second."""
    from pyserve import models
    from pyserve.kernels.fuse import fuse

    torch.set_num_threads(threads)
    size, batch = NETWORKS[architecture]
    model = fuse(models.create_model(architecture, 10), inference=False).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    x, y = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    steps, begun = -WARM_UP_STEPS, time.monotonic()
    while steps <= 0 or time.monotonic() - begun < seconds:
        if steps == 0:
            begun = time.monotonic()
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        steps += 1
    print(steps * batch / (time.monotonic() - begun))


def speed(setting: dict[str, str], architecture: str, processes: int, seconds: float, threads: int) -> float:
    """Pictures a second of so many processes at once, added up."""
    environment = {**os.environ, "PYTHONPATH": str(report.ROOT), **setting}
    command = [sys.executable, str(Path(__file__)), "--work", architecture, str(seconds), str(threads)]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in started)


def main() -> None:
    """Measure all settings in turns."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each process, without its start")
    parser.add_argument("--work", nargs=3, help="(the process that is measured)")
    options = parser.parse_args()
    if options.work:
        work(options.work[0], float(options.work[1]), int(options.work[2]))
        return
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    rows = []
    for architecture in NETWORKS:
        for processes in (1, 2):
            found: dict[str, list[float]] = {name: [] for name in SETTINGS}
            for _ in range(rounds):
                for name, setting in SETTINGS.items():
                    found[name].append(speed(setting, architecture, processes, seconds, options.threads))
            base = statistics.median(found["libgomp's default"])
            for name, speeds in found.items():
                rows.append(
                    {
                        "network": architecture,
                        "processes": processes,
                        "waiting": name,
                        "pictures_per_s": statistics.median(speeds),
                        "to_default": statistics.median(speeds) / base,
                        "lowest": min(speeds),
                        "highest": max(speeds),
                    }
                )
            print(report.table(rows[-len(SETTINGS) :]), flush=True)
    best = {(row["network"], row["processes"]): row for row in sorted(rows, key=lambda row: row["pictures_per_s"])}
    summary = "; ".join(
        f"{network}, {processes} at once: best with {row['waiting']}, {row['to_default']:.2f} × the default"
        for (network, processes), row in sorted(best.items())
    )
    print(summary)
    report.write(options.json, "thread_waiting", rows, f"{summary}.", ["torch"])


if __name__ == "__main__":
    main()
