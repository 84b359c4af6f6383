"""Prediction on the CPU, whole networks: ours against eager PyTorch, torch.compile, ONNX Runtime and OpenVINO.

    python benchmarks/predict_cpu.py --threads 2 --json benchmarks/results/predict_cpu_float32.json
    (bfloat16: --dtype bfloat16, and a --json of its own)

Pictures of 224 × 224, networks of torchvision with random weights (times do not depend on them). Eager and
compiled ones are channels-last, compiled ones frozen; the others get an ONNX export. All take turns in one
process. Every network's outputs are compared with eager float32 first; bfloat16, without ONNX Runtime, tells these
errors: rounding once a layer adds up to a tenth in ResNet-50 with random weights.
"""

from __future__ import annotations

from typing import Any

import cpu_peers
import torch
from cpu_timing import Function, geometric_mean, median_ms, row
from speed_chart import write_chart
from torch import Tensor, nn

import report
from pyserve._torchvision import torchvision
from pyserve.kernels import fuse
from pyserve.kernels._extension import C

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.2}
NETWORKS = ("resnet18", "resnet34", "resnet50", "vgg16", "mobilenet_v2")
RIVALS = {
    "float32": ["eager", "torch.compile", "ONNX Runtime", "OpenVINO"],
    "bfloat16": ["eager", "torch.compile", "OpenVINO"],
}


def network(name: str) -> nn.Module:
    """In eval mode, with statistics that keep the numbers in range through all layers."""
    torch.manual_seed(0)
    model: nn.Module = torchvision().models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 96, 96))
    return model.eval()


def checked(name: str, predict: cpu_peers.Predict, x: Tensor, expected: Tensor, tolerance: float) -> float:
    """The outputs' error, relative to their norm. Nobody is timed who computes something else."""
    error = float((predict(x).float() - expected).norm() / expected.norm())
    if not error <= tolerance:
        raise SystemExit(
            f"{name}: the outputs differ by {error:.2g} of their norm, expected at most {tolerance:g}"
        )
    return error


@torch.inference_mode()
def measure(name: str, N: int, dtype: torch.dtype, rivals: list[str], *, quick: bool) -> dict[str, Any]:
    """One row: a network at one batch size."""
    with torch.inference_mode(False):  # exporters and compilers want tensors that count their versions
        model, pictures = network(name), torch.randn(N, 3, 224, 224)
    expected = model(pictures)
    with torch.inference_mode(False):
        ours = fuse(model, inference=True).to(dtype)
        predict = {"ours": ours, **cpu_peers.predictors(model, pictures, dtype, rivals)}
    functions: dict[str, Function] = {}
    errors = {}
    for who, function in predict.items():
        x = pictures if who in ("ONNX Runtime", "OpenVINO") else pictures.to(dtype)
        if who in ("eager", "torch.compile"):
            x = x.contiguous(memory_format=torch.channels_last)
            model.to(dtype)
        errors[f"{who} error"] = checked(f"{name} in {who}", function, x, expected, TOLERANCES[dtype])
        functions[who] = lambda function=function, x=x: function(x)  # type: ignore[misc]
    times = median_ms(functions, 3 if quick else 9, 0.05 if quick else 0.4)
    told = {"dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    return row(f"{name}, batch {N}", times, **told) | (errors if dtype is torch.bfloat16 else {})


def main() -> None:
    parser = report.arguments("whole networks on the CPU, predicting")
    parser.add_argument("--dtype", choices=RIVALS, default="float32")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rivals", nargs="+", help="fewer of them")
    options = parser.parse_args()
    cpu_peers.enter()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.networks:
        for N in options.batches:
            torch.compiler.reset()
            rivals = options.rivals or RIVALS[options.dtype]
            rows.append(measure(name, N, getattr(torch, options.dtype), rivals, quick=options.quick))
            told = ", ".join(f"{k} {v:.2f}" for k, v in rows[-1].items() if isinstance(v, float))
            print(f"{rows[-1]['case']:24} {told}", flush=True)
    mean = geometric_mean(r["ratio to best"] for r in rows)
    summary = f"{options.dtype}, {options.threads} threads, {C.isa_in_use()}: {mean:.2f} × the best rival's speed."
    print(summary)
    report.write(options.json, "predict_cpu", rows, summary, cpu_peers.PACKAGES)
    if options.json:
        title = f"Prediction of 224 × 224 pictures, {options.dtype}, threads: {options.threads}"
        write_chart(options.json, rows, options.rivals or RIVALS[options.dtype], title)


if __name__ == "__main__":
    main()
