"""A training step of ResNet-18 on the CPU: ours against eager channels-last and against torch.compile.

    python benchmarks/train_cpu.py --threads 2 --json benchmarks/results/train_cpu_float32.json
    python benchmarks/train_cpu.py --threads 2 --dtype bfloat16 --json benchmarks/results/train_cpu_bfloat16.json

Forward, cross-entropy, backward and a fused SGD step with momentum, batch 32; bfloat16 is autocast. All three take
turns in one process, which keeps freed memory as a training job's does; before, the losses of a step are compared.
--profile tells where our time goes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from cpu_timing import geometric_mean, median_ms, row
from torch import Tensor, nn

import report
from pyserve._torchvision import torchvision
from pyserve.jobs.worker.process import keep_freed_memory
from pyserve.kernels import fuse
from pyserve.kernels._extension import C

SIZES = (160, 64)


def stepper(model: nn.Module, parameters: Any, x: Tensor, y: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A training step; gives the loss."""
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def steps(name: str, size: int, N: int, dtype: torch.dtype, *, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Of ours and of the rivals, from the same weights."""
    torch.manual_seed(0)
    model: nn.Module = torchvision().models.get_model(name, weights=None)
    x, y = torch.randn(N, 3, size, size), torch.randint(1000, (N,))
    last = x.contiguous(memory_format=torch.channels_last)
    ours = fuse(copy.deepcopy(model), inference=False)
    eager = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = {
        "ours": stepper(ours, ours.parameters(), last, y, dtype),
        "eager": stepper(eager, eager.parameters(), last, y, dtype),
    }
    if compiled:
        twin = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made["torch.compile"] = stepper(torch.compile(twin), twin.parameters(), last, y, dtype)
    return made


def profile(step: Callable[[], Tensor]) -> None:
    """Our operators by their time."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40))


def main() -> None:
    parser = report.arguments("a training step on the CPU")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    dtype, tolerance = (torch.bfloat16, 0.05) if options.dtype == "bfloat16" else (torch.float32, 1e-3)
    rows = []
    for size in SIZES:
        torch.compiler.reset()
        functions = steps(options.network, size, options.batch, dtype, compiled=not options.quick)
        losses = {name: float(step()) for name, step in functions.items()}
        if max(losses.values()) - min(losses.values()) > tolerance:
            raise SystemExit(f"the losses differ: {losses}")
        if options.profile:
            profile(functions["ours"])
        times = median_ms(functions, 3 if options.quick else 7, 0)
        rows.append(
            row(
                f"{options.network}, batch {options.batch}, {size} px",
                times,
                dtype=options.dtype,
                threads=options.threads,
            )
        )
        print(rows[-1], flush=True)
    mean = geometric_mean(r["ratio to best"] for r in rows)
    summary = (
        f"{options.dtype}, {options.threads} threads, {C.isa_in_use()}: {mean:.2f} × the better rival's speed."
    )
    print(summary)
    report.write(options.json, f"train_cpu_{options.dtype}", rows, summary, ["torch", "torchvision"])


if __name__ == "__main__":
    main()
