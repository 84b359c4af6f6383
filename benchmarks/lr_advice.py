"""How good is the learning-rate finder's advice? Each rule's rate against the best of a grid of fixed rates.

    nice -n 15 python benchmarks/lr_advice.py --threads 1 --json benchmarks/results/lr_advice.json

For each case (`lr_cases.py`) three range tests are run and every rule reads them. Then the network is trained
from the same start with fixed learning rates, three to a decade around the best, and with that of the schedule's
default rule (the median of the three tests); losses at the other rules' rates are interpolated. The final loss
is the training loss, mean of the last quarter of the steps and of the seeds; the excess of a rate is how far its
final loss lies above the lowest of all rates that were trained. A training that is not finite, or ends above
where it began, has no final loss. The constant schedule (2 seeds) and one-cycle with the rate as its peak (1
seed) are measured.

What was trained is kept in the JSON file and not trained again. `--interpolate` trains nothing.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import report
from lr_cases import CASES, Case
from pyserve.insight.figures.style import BLUE, FAINT, ORANGE, figure, logarithmic, new_figure
from pyserve.spec import default_rule
from pyserve.training.callbacks import CurvePoint
from pyserve.training.lr_finder import suggest_all
from pyserve.training.lr_rules import RULES
from pyserve.training.optim import set_rates
from pyserve.training.range_test import Curve, RangeTest, endless, range_test
from pyserve.training.schedules import SCHEDULES, Span
from pyserve.training.seeding import kept_random_state

REPEATS = 3
SCHEDULE_NAMES = {"constant": (0, 1), "one_cycle": (0,)}  # and the seeds of each
COLOURS = {"constant": BLUE, "one_cycle": ORANGE}
PER_DECADE = 3
MIDDLE = {"adamw": 1e-3, "sgd": 0.1}
FAR = 1.25  # the grid goes on, up and down, until a loss is so many times the best
GOOD = 0.05  # excess that still counts as good advice


def final_loss(case: Case, rate: float, schedule: str, seed: int) -> float:
    """Train, and give the mean training loss of the last quarter of the steps; infinite where it did not learn."""
    losses: list[float] = []
    with kept_random_state():
        network, train = case.start(seed)
        config = case.config(seed)
        network.train_mode(freeze_batch_norm=config.freeze_batch_norm)
        optimizer = config.make_optimizer(network)
        with closing(endless(train)) as batches:
            for step in range(case.steps):
                point = SCHEDULES[schedule](step, Span(case.steps))
                set_rates(optimizer, rate * point.lr_factor, point.momentum)
                group = itertools.islice(batches, case.gradient_accumulation)
                losses.append(float(config.step.run(network.model, optimizer, group, step).loss))
                if not math.isfinite(losses[-1]):
                    return math.inf
    end = statistics.fmean(losses[-(case.steps // 4) :])
    return end if end < losses[0] else math.inf


def range_tests(case: Case) -> list[dict[str, Any]]:
    """Curves as the finder makes them: each repeat begins from its own seed."""
    found = []
    for run in range(REPEATS):
        network, train = case.start(run)
        curve = range_test(network, case.config(run), train, RangeTest(), run=run)
        values = {"lrs": curve.lrs, "losses": curve.losses, "smoothed": curve.smoothed}
        found.append({"planned": curve.planned, "diverged": curve.diverged, **values})
    return found


class Measurements:
    """What has been measured so far: per case the curves, and final losses by schedule and rate, one a seed."""

    def __init__(self, path: Path | None, *, interpolate: bool) -> None:
        self._path, self._interpolate = path, interpolate
        self.cases: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.cases = json.loads(path.read_text())["measurements"]

    def curves(self, case: Case) -> list[Curve]:
        """The case's range tests."""
        entry = self.cases.setdefault(case.name, {"curves": [], "losses": {name: {} for name in SCHEDULE_NAMES}})
        if not entry["curves"]:
            entry["curves"] = range_tests(case)
            self._keep()
        return [_curve(stored, run) for run, stored in enumerate(entry["curves"])]

    def losses(self, case: Case, schedule: str) -> dict[float, float]:
        """Final losses that were measured, by ascending rate."""
        known = self.cases[case.name]["losses"][schedule]
        return {float(rate): statistics.fmean(known[rate]) for rate in sorted(known, key=float)}

    def known(self, case: Case, schedule: str, rate: float) -> float:
        """The final loss at a rate: measured, or between the two that were measured beside it."""
        known = self.cases[case.name]["losses"][schedule].get(f"{rate:.3g}")
        return statistics.fmean(known) if known else interpolated(self.losses(case, schedule), rate)

    def loss(self, case: Case, schedule: str, rate: float) -> float:
        """The final loss at a rate, trained where it is not known."""
        known = self.cases[case.name]["losses"][schedule]
        name = f"{rate:.3g}"
        if name not in known and self._interpolate:
            return self.known(case, schedule, rate)
        if name not in known:
            found = [final_loss(case, float(name), schedule, seed) for seed in SCHEDULE_NAMES[schedule]]
            known[name] = found if all(map(math.isfinite, found)) else [math.inf]
            print(f"  {case.name}: {schedule} {name}: {known[name]}", flush=True)
            self._keep()
        return statistics.fmean(known[name])

    def _keep(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"measurements": self.cases}) + "\n")


def _curve(stored: dict[str, Any], run: int) -> Curve:
    values = zip(stored["lrs"], stored["losses"], stored["smoothed"], strict=True)
    points = [CurvePoint(lr, loss, smoothed, math.nan, run) for lr, loss, smoothed in values]
    return Curve(stored["planned"], points, stored["diverged"])


def interpolated(losses: dict[float, float], rate: float) -> float:
    """The loss at a rate, linear in its logarithm between the two beside it; infinite outside."""
    rates = list(losses)
    right = bisect.bisect_left(rates, rate)
    if right in (0, len(rates)):
        return losses[rates[right]] if right < len(rates) and rates[right] == rate else math.inf
    low, high = rates[right - 1], rates[right]
    position = math.log(rate / low) / math.log(high / low)
    return losses[low] + (losses[high] - losses[low]) * position if math.isfinite(losses[high]) else losses[high]


def train_grid(measured: Measurements, case: Case, schedule: str, *, quick: bool) -> None:
    """Rates up and down from the middle until both ends are far from the best."""
    middle = round(PER_DECADE * math.log10(MIDDLE[case.optimizer]))
    best = measured.loss(case, schedule, 10 ** (middle / PER_DECADE))
    for direction in (1, -1):
        for distance in range(1, 3 if quick else 5 * PER_DECADE):
            loss = measured.loss(case, schedule, 10 ** ((middle + direction * distance) / PER_DECADE))
            best = min(best, loss)
            if loss > FAR * best:
                break


def rows_of(measured: Measurements, case: Case) -> list[dict[str, Any]]:
    """One row a schedule: the best rate and, rule by rule, the rate and its excess in per cent."""
    suggestions = suggest_all(measured.curves(case))
    rows = []
    for schedule in SCHEDULE_NAMES:
        advised = suggestions[default_rule(schedule)].learning_rate
        if advised is not None:
            measured.loss(case, schedule, advised)
        losses = measured.losses(case, schedule)
        best = min(losses, key=losses.__getitem__)
        row: dict[str, Any] = {"case": case.name, "schedule": schedule, "best lr": best, "loss": losses[best]}
        for rule, suggestion in suggestions.items():
            rate = suggestion.learning_rate
            excess = math.inf if rate is None else measured.known(case, schedule, rate) / losses[best] - 1
            row[f"{rule} lr"] = rate or "none"
            row[f"{rule} excess %"] = round(100 * excess, 1) if math.isfinite(excess) else "fails"
        rows.append(row)
    return rows


def summary_of(rows: list[dict[str, Any]]) -> str:
    """How often each rule is good, and how far off it is in the middle and at worst, by schedule."""
    told = []
    for schedule in SCHEDULE_NAMES:
        chosen = [row for row in rows if row["schedule"] == schedule]
        parts = []
        for rule in RULES:
            excess = [row[f"{rule} excess %"] for row in chosen]
            numbers = [math.inf if value == "fails" else value for value in excess]
            good = sum(value <= 100 * GOOD for value in numbers)
            parts.append(
                f"{rule} {good} of {len(numbers)} (median {statistics.median(numbers):.3g} %, "
                f"worst {max(numbers):.3g} %)"
            )
        told.append(f"{schedule}: within {GOOD:.0%} of the best: {'; '.join(parts)}.")
    return " ".join(told)


@figure("lr_advice")
def advice(measured: Measurements, cases: Sequence[Case]) -> Figure:
    """Case by case how far each rate's final loss lies above the best, and where the rules point."""
    rows = -(-len(cases) // 2)
    built = new_figure(2.3 * rows)
    grid = built.subplots(rows, 2, squeeze=False)
    defaults = {default_rule(schedule): colour for schedule, colour in COLOURS.items()}
    for axes, case in zip(grid.flat, cases, strict=False):
        near: list[float] = []
        for schedule, colour in COLOURS.items():
            losses = measured.losses(case, schedule)
            best = min(losses.values())
            shown = {rate: min(100 * (loss / best - 1), 99) for rate, loss in losses.items()}
            near += [rate for rate, excess in shown.items() if excess < 99]
            axes.plot(list(shown), list(shown.values()), "o-", color=colour, markersize=3, label=schedule)
        for rule, found in suggest_all(measured.curves(case)).items():
            if found.learning_rate is None:
                continue
            style: dict[str, Any] = {"color": FAINT, "linewidth": 1.5, "label": "other rules"}
            if rule in defaults:
                style = {"color": defaults[rule], "linewidth": 2.5, "label": rule}
                near.append(found.learning_rate)
            axes.axvline(found.learning_rate, linestyle="--", zorder=1, **style)
        logarithmic(axes)
        axes.set(xlim=(min(near) / 2, max(near) * 2), ylim=(0, 65))
        axes.set_title(case.name, fontsize=9)
    for axes in list(grid.flat)[len(cases) :]:
        axes.set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    told = dict(zip(labels, handles, strict=True))
    built.legend(told.values(), told.keys(), loc="outside upper center", ncols=len(told))
    built.supxlabel("learning rate (highest)")
    built.supylabel("final loss above the best, %")
    return built


def main() -> None:
    """Measure and tell."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument("--interpolate", action="store_true", help="train nothing, use what the file has")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = Measurements(options.json, interpolate=options.interpolate)
    cases = [case for case in CASES if not options.case or any(part in case.name for part in options.case)]
    rows = []
    for case in cases:
        measured.curves(case)
        for schedule in SCHEDULE_NAMES:
            if not options.interpolate:
                train_grid(measured, case, schedule, quick=options.quick)
        rows += rows_of(measured, case)
        print(report.table(rows[-2:]), flush=True)
    print(summary_of(rows))
    report.write(
        options.json, "lr_advice", rows, summary_of(rows), ["torch"], details={"measurements": measured.cases}
    )
    if options.json:
        for file in advice(measured, cases):
            options.json.with_name(file.name).write_bytes(file.data)


if __name__ == "__main__":
    main()
