"""Timing for the benchmarks of the CUDA kernels: CUDA graphs, buffers that do not stay in the cache, medians.

With `device="cpu"` the same functions are timed by the wall clock, without graphs: it shows that a benchmark runs,
and says nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import report

Function = Callable[[int], object]  # called with the number of a set of buffers
COLD_BYTES = 256 << 20  # of all sets together: several times the L2 of a data-centre GPU


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that the CUDA benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions, to see that it runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return parser


def sets_needed(bytes_each: int, device: str) -> int:
    """How many sets of buffers are used in turn, so that each is cold when its turn comes."""
    return 2 if device == "cpu" else max(2, min(64, -(-COLD_BYTES // max(1, bytes_each))))


def _captured(function: Function, sets: int) -> Callable[[], None]:
    """One call for every set, as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # algorithms are chosen and memory is taken before the capture
        for _ in range(3):
            function(0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(sets):
            function(i)
    return graph.replay


def _replay_ms(replay: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _wall_ms(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def median_ms(functions: dict[str, Function], sets: int, device: str, rounds: int = 15) -> dict[str, float]:
    """Milliseconds a call of each function; they take turns, round by round.

    A function that cannot run (a peer that this torch lacks) is left out, and told.
    """
    runs: dict[str, Callable[[], None]] = {}
    for name, function in functions.items():
        try:
            if device == "cuda":
                runs[name] = _captured(function, sets)
            else:
                runs[name] = lambda function=function: [function(i) for i in range(sets)]  # type: ignore[misc]
            runs[name]()
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            print(f"  {name} does not run: {str(error).splitlines()[0][:100]}")
            runs.pop(name, None)
            if device == "cuda":
                torch.cuda.synchronize()
    timer = _replay_ms if device == "cuda" else _wall_ms
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timer(run) / sets)
    return {name: statistics.median(found) for name, found in times.items()}


def ceilings(device: str) -> dict[str, float]:
    """What this GPU reaches: bytes a second of a copy, read and written; operations a second of a product."""
    size = 1 << (30 if device == "cuda" else 24)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if device == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy = median_ms({"copy": lambda _: target.copy_(source)}, 2, device)["copy"]
    product = median_ms({"product": lambda _: a @ b}, 2, device)["product"]
    return {"tb_per_s": 2 * size / copy * 1e-9, "bf16_tflops": 2 * side**3 / product * 1e-9}


def machine(device: str) -> dict[str, Any]:
    """The GPU, its driver, and what it reaches."""
    if device == "cpu":
        return {"gpu": "none: a dry run on the CPU"}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **ceilings(device),
    }


def write(path: Path | None, benchmark: str, rows: Sequence[dict[str, Any]], summary: str, device: str) -> None:
    """One result file, with the GPU it was measured on."""
    print(summary)
    report.write(path, benchmark, rows, summary, ["torch"], machine(device))


def channels_last(*sizes: int, dtype: torch.dtype, device: str) -> Tensor:
    """Random values."""
    return torch.randn(*sizes, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
