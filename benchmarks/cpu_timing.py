"""How the CPU benchmarks take times: what is compared alternates in one process, each figure is a median."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

Function = Callable[[], object]
_PAUSE_S = 0.01  # a rival's threads go on spinning for a while, and would slow the next one down
_FLUSHED_BYTES = 96 << 20


def median_ms(functions: dict[str, Function], rounds: int, block_s: float) -> dict[str, float]:
    """Milliseconds a call, by rounds of one block of calls of each function; caches as the calls leave them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            time.sleep(_PAUSE_S)
            function()
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < block_s:
                function()
                calls += 1
            times[name].append((time.perf_counter() - start) / calls * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def cold_median_ms(functions: dict[str, Function], rounds: int) -> dict[str, float]:
    """Milliseconds of single calls after other memory was written, as in a network larger than the caches."""
    other = torch.zeros(_FLUSHED_BYTES // 4)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            other.add_(1)
            time.sleep(_PAUSE_S / 4)
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def row(case: str, times: dict[str, float], **more: Any) -> dict[str, Any]:
    """A line of the result: "ours" and the rivals in ms, the best rival's time ÷ ours."""
    ours, *rivals = times.values()
    return {
        "case": case,
        **more,
        **{f"{name} ms": value for name, value in times.items()},
        "ratio to best": min(rivals) / ours,
    }


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))
