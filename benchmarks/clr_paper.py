"""Smith's comparison of learning-rate policies on CIFAR-10 (arXiv 1506.01186), at equal numbers of iterations.

    nice -n 15 python benchmarks/clr_paper.py --json benchmarks/results/clr_paper.json     # on a CPU: reduced
    python benchmarks/clr_paper.py --device cuda --iterations 25000 --json …               # on a GPU: in full

The network is Caffe's cifar10_quick, the one of the paper, on our convolutions: batches of 100, SGD with momentum
0.9 and weight decay 0.004, pictures less their mean, no augmentation. Policies: the fixed rate 0.001; triangular2
and exp_range up to 0.006, six cycles to a run as in the paper's 25,000 iterations; the fixed rate ten times lower
for the last seventh, as in the paper's 70,000; and one-cycle up to 0.006, which is later than the paper (arXiv
1803.09820). `--network resnet56` compares what super-convergence is about (arXiv 1708.07120): one-cycle up to 1
against a fixed rate of 0.1 with drops.

The paper's figures for its whole runs: fixed 81.4 % after 70,000, triangular2 81.4 % after 25,000, exp_range 82.2
% after 42,000 iterations.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import report
from pictures import Parts, cifar10
from pyserve import models
from pyserve.data.batches import TrainBatches, ValidBatches
from pyserve.insight.figures.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, figure, new_figure
from pyserve.kernels.fuse import fuse
from pyserve.training.evaluation import evaluate
from pyserve.training.optim import make_optimizer, set_rates
from pyserve.training.range_test import endless
from pyserve.training.schedules import SCHEDULES, Point, Span
from pyserve.training.step import TrainStep

CYCLES = 6  # the paper's stepsize of 2,000 is a twelfth of 25,000 iterations
MEASURED = 20  # times in a run
MEAN, STD = (0.4914, 0.4822, 0.4465), (1 / 255,) * 3  # of CIFAR-10; values stay 0…255 as in Caffe


class QuickNet(nn.Module):
    """Caffe's cifar10_quick: three 5×5 convolutions with pooling, two linear layers; 145,578 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 5, padding=2), nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.largest = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 2, ceil_mode=True)
        self.relu = nn.ReLU()
        self.ip1, self.ip2 = nn.Linear(1024, 64), nn.Linear(64, 10)
        for layer, std in (
            (self.conv1, 1e-4),
            (self.conv2, 0.01),
            (self.conv3, 0.01),
            (self.ip1, 0.1),
            (self.ip2, 0.1),
        ):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of [N, 3, 32, 32]."""
        x = self.relu(self.largest(self.conv1(x)))
        x = self.mean(self.relu(self.conv2(x)))
        x = self.mean(self.relu(self.conv3(x)))
        y: Tensor = self.ip2(self.ip1(x.flatten(1)))
        return y


@dataclass(frozen=True)
class Policy:
    """A highest rate and how it moves: step, span → factor and momentum."""

    name: str
    rate: float
    schedule: Callable[[int, Span], Point]
    cycles: int = 1

    def span(self, iterations: int) -> Span:
        """The whole run."""
        return Span(iterations, iterations // self.cycles)


def drops(*at: float) -> Callable[[int, Span], Point]:
    """A tenth of the rate from each of these fractions of the run on."""
    return lambda step, span: Point(0.1 ** sum(step >= fraction * span.total_steps for fraction in at))


POLICIES = {
    "quick": (
        Policy("fixed", 0.001, SCHEDULES["constant"]),
        Policy("fixed, then a tenth", 0.001, drops(6 / 7)),
        Policy("triangular2", 0.006, SCHEDULES["triangular2"], CYCLES),
        Policy("exp_range", 0.006, SCHEDULES["exp_range"], CYCLES),
        Policy("one_cycle", 0.006, SCHEDULES["one_cycle"]),
    ),
    "resnet56": (
        Policy("0.1 with drops", 0.1, drops(1 / 2, 3 / 4)),
        Policy("one_cycle", 1.0, SCHEDULES["one_cycle"]),
    ),
}


def run(
    network: str, policy: Policy, parts: Parts, iterations: int, seed: int, device: torch.device
) -> list[float]:
    """Accuracy on the test pictures, `MEASURED` times in a training."""
    torch.manual_seed(seed)
    quick = network == "quick"
    model = fuse(QuickNet() if quick else models.create_model(network, 10), inference=False)
    model.to(device, memory_format=torch.channels_last)
    decay, batch = (0.004, 100) if quick else (1e-4, 125)
    groups = [{"params": list(model.parameters()), "weight_decay": decay, "lr_factor": 1.0, "layer_group": 0}]
    optimizer = make_optimizer("sgd", groups, momentum=0.9, nesterov=False)
    view: dict[str, Any] = {"image_size": 32, "mean": MEAN, "std": STD, "device": device}
    train = TrainBatches(parts[0], batch_size=batch, augment="none" if quick else "crop", seed=seed, **view)
    valid = ValidBatches(parts[1], batch_size=500, **view)
    step, found = TrainStep(seed=seed), []
    with closing(endless(train)) as batches:
        for number in range(iterations):
            model.train()
            point = policy.schedule(number, policy.span(iterations))
            set_rates(optimizer, policy.rate * point.lr_factor, point.momentum)
            step.run(model, optimizer, [next(batches)], number)
            if (number + 1) * MEASURED % iterations < MEASURED:
                views = (((x,), y) for x, y in valid.epoch(0))
                found.append(evaluate(model, views, lambda: None)["accuracy"])
    return found


@figure("clr_paper")
def curves(rows: Sequence[dict[str, Any]], iterations: int) -> Figure:
    """Accuracy against iterations, one line a policy, mean of the seeds."""
    built = new_figure(4.8)
    axes = built.add_subplot()
    for row, colour in zip(rows, (BLUE, PURPLE, GREEN, ORANGE, VERMILION), strict=False):
        values = [100 * statistics.fmean(at) for at in zip(*row["runs"], strict=True)]
        steps = [iterations * (i + 1) / len(values) for i in range(len(values))]
        axes.plot(steps, values, color=colour, label=f"{row['policy']}, {values[-1]:.1f} %", linewidth=2)
    axes.set_xlabel("iterations")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Learning-rate policies at equal iterations, CIFAR-10")
    axes.legend(loc="lower right")
    return built


def main() -> None:
    """Train with all policies; what was trained is kept in the JSON file and not trained again."""
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=POLICIES, default="quick")
    parser.add_argument("--iterations", type=int, default=2000, help="of each run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    iterations = 40 if options.quick else options.iterations
    full = options.device != "cpu"
    parts = cifar10(32, 50, 10) if full else cifar10(32, 2 if options.quick else 50, 1 if options.quick else 2)
    measured: dict[str, list[list[float]]] = {}
    if options.json and options.json.exists():
        measured = json.loads(options.json.read_text())["measured"]
    rows = []
    for policy in POLICIES[options.network]:
        runs = measured.setdefault(f"{options.network}, {policy.name}, {iterations}", [])
        for seed in range(len(runs), options.seeds):
            runs.append(run(options.network, policy, parts, iterations, seed, torch.device(options.device)))
            keep(options.json, measured)
        last = [100 * found[-1] for found in runs]
        row: dict[str, Any] = {"policy": policy.name, "highest lr": policy.rate, "iterations": iterations}
        row |= {
            "accuracy %": statistics.fmean(last),
            "lowest": min(last),
            "highest": max(last),
            "seeds": len(last),
        }
        rows.append(row)
        print(report.table(rows[-1:]), flush=True)
    best = max(rows, key=lambda row: row["accuracy %"])
    where = f"{options.network} network, {iterations} iterations, {len(parts[1])} test pictures"
    summary = f"{where}: {best['policy']} is best with {best['accuracy %']:.1f} %."
    print(summary)
    report.write(options.json, "clr_paper", rows, summary, ["torch"], details={"measured": measured})
    if options.json:
        drawn = [{**row, "runs": runs} for row, runs in zip(rows, measured.values(), strict=False)]
        for file in curves(drawn, iterations):
            options.json.with_name(file.name).write_bytes(file.data)


def keep(path: Path | None, measured: dict[str, Any]) -> None:
    """Write what was measured so far."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"measured": measured}) + "\n")


if __name__ == "__main__":
    main()
