"""What serving is to reach beside its peers, and whether the rows of `serving.py` reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OF_BARE = 0.92  # of the bare predictor's best throughput, at 32 callers
TIMES_PEER = {"PyTorch": 3.0, "ONNX Runtime": 1.8}  # the better peer's throughput, at 32 callers
OVERHEAD_MS = 1.5  # p50 of one caller above the bare predictor's
HEALTH_P99_MS = 50.0  # at the most callers

Row = Mapping[str, Any]


def verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each target and each of our servers; "not measured" where a row is missing."""
    by = {(row["server"], row["case"]): row for row in rows}
    ours = list(dict.fromkeys(row["server"] for row in rows if row["server"].startswith("pyserve ")))
    return [{"server": name, **line} for name in ours for line in _lines(name, rows, by)]


def _lines(name: str, rows: Sequence[Row], by: Mapping[tuple[str, str], Row]) -> Iterator[dict[str, Any]]:
    dtype = name.removeprefix("pyserve ")
    at_32, alone = by.get((name, "closed, 32")), by.get((name, "closed, 1"))
    loops = [row for row in rows if row["server"] == f"no server, {dtype}"]
    best_loop = max((row["per_s"] for row in loops), default=None)
    ratio = at_32 and best_loop and at_32["per_s"] / best_loop
    yield _line("throughput ÷ bare predictor's, 32 callers", ratio, f"≥ {OF_BARE}", OF_BARE, at_least=True)
    for backend, wanted in TIMES_PEER.items():
        peers = [row for row in rows if row["server"].endswith(backend) and row["case"] == "closed, 32"]
        ratio = at_32 and peers and at_32["per_s"] / max(row["per_s"] for row in peers)
        target = f"throughput ÷ better peer's with {backend}, 32 callers"
        yield _line(target, ratio, f"≥ {wanted}", wanted, at_least=True)
    yield _worst_p99(name, rows, by)
    loop = by.get((f"no server, {dtype}", "bare loop, batch 1"))
    overhead = alone["p50_ms"] - loop["p50_ms"] if alone and loop else None
    yield _line("p50 above the bare predictor's, 1 caller, ms", overhead, f"≤ {OVERHEAD_MS}", OVERHEAD_MS)
    health = [row["health_p99_ms"] for row in rows if row["server"] == name and "health_p99_ms" in row]
    target = "health check's p99 under full load, ms"
    yield _line(target, max(health, default=None), f"< {HEALTH_P99_MS:g}", HEALTH_P99_MS)


def _worst_p99(name: str, rows: Sequence[Row], by: Mapping[tuple[str, str], Row]) -> dict[str, Any]:
    """Our p99 against the best peer's, in the closed case where that looks worst for us.

    Not in the open cases, where each server gets a share of its own best throughput: ours answers several times
    as many requests there.
    """
    peers: dict[str, float] = {}
    for row in rows:
        is_peer = not row["server"].startswith(("pyserve ", "no server"))
        if is_peer and row["case"].startswith("closed, "):
            peers[row["case"]] = min(row["p99_ms"], peers.get(row["case"], float("inf")))
    ratios = {case: by[name, case]["p99_ms"] / p99 for case, p99 in peers.items() if (name, case) in by and p99}
    worst = max(ratios, key=ratios.__getitem__, default=None)
    target = f"p99 ÷ best peer's, worst of closed loops{f' ({worst})' if worst else ''}"
    return _line(target, ratios[worst] if worst else None, "≤ 1", 1.0)


def _line(target: str, value: Any, wanted: str, bound: float, *, at_least: bool = False) -> dict[str, Any]:
    if not value and value != 0:
        return {"target": target, "wanted": wanted, "measured": "not measured", "verdict": "not measured"}
    met = value >= bound if at_least else value < bound if wanted.startswith("<") else value <= bound
    return {"target": target, "wanted": wanted, "measured": f"{value:.4g}", "verdict": "met" if met else "missed"}
